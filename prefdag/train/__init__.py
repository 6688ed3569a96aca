"""The one training loop: tasks, steps, optimiser, checkpoints."""
