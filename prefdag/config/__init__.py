"""params.yaml: a section's class stands in the file of its name, and `params` joins them."""
