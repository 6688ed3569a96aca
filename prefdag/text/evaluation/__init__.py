"""Evaluation of the policy: held-out pairs, eval sets, multiple choice, judges."""
