"""Held-out pairs, eval sets, choices and judges."""
