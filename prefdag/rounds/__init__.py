"""Rounds of sampling, judging and training (iterative DPO)."""
