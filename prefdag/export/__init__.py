"""Models as other programs take them: folders that are read back and compared, and versions in MLflow's registry."""
