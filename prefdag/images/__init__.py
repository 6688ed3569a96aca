"""Images: reading them, their rows, label pairs, label noise."""
