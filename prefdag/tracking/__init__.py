"""Runs in MLflow, sent through a spool on disk."""
