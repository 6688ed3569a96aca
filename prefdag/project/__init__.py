"""Works on the project's own files: applies profiles to params.yaml, writes dvc.yaml, verifies dvc.lock."""
