"""Exports models for other programs: folders that are read back and compared, and versions in MLflow's registry."""
