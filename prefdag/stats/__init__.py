"""Confidence intervals, tests and reward metrics."""
