"""Losses of the user's own, in stages/losses.py: their names, and checks before training. Cannot change an output."""
