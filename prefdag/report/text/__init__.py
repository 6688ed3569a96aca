"""What the report shows of the language model."""
