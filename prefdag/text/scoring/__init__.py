"""Log-probabilities of responses: packed rows, attention, hidden states, vocabulary."""
