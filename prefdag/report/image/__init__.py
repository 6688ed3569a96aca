"""What the report shows of the image classifiers."""
