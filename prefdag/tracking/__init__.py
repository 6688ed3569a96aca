"""Runs in MLflow, by way of a spool on disk."""
