"""Images: reading them, label noise, label pairs."""
