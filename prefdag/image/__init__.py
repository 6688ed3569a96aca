"""The image track: ResNet classifiers, their data, label pairs, DPO and evaluation."""
