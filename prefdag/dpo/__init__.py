"""The core that both tracks share: losses, trainer, checkpoints. Knows nothing of text or images."""
