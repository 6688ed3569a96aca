"""Several experiments side by side: the comparison of two, the frontier of many."""
