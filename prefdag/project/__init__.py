"""The project's own files: profiles over params.yaml, dvc.yaml from the code, the working tree against dvc.lock."""
