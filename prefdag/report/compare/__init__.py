"""Experiments beside each other: the comparison of two, the frontier of many."""
