"""Comparisons of answers that people label: what they are asked, in which forms, and what they said."""
