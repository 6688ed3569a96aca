"""Direct Preference Optimization as a declarative, reproducible pipeline."""
