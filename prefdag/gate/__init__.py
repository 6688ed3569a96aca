"""The data gate: checks of pairs and images before anything is trained on them."""
