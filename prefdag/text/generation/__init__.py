"""Answers of reference and policy: decoding, streaming."""
