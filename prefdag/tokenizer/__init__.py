"""From a dialogue to token ids: the chat template, the tokenizer, and the control tokens that somebody typed."""
