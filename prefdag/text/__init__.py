"""Causal language models: adapters, packing, log-probabilities, generation."""
