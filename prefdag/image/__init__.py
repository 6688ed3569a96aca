"""Image classifiers: ResNet, label pairs, log-probabilities."""
