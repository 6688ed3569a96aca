"""The data gate: checks of pairs and images before training."""
