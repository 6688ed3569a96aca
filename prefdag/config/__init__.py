"""The schema of params.yaml: one file per section, joined in `params`."""
