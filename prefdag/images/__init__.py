"""Images: reading them, published splits, label noise."""
