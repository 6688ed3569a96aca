"""The training loop of both tracks: tasks, steps, optimiser, checkpoints."""
