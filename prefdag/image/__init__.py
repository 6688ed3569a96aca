"""The image track: ResNet classifiers, their data, DPO and evaluation."""
