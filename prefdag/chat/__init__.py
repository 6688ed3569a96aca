"""Chat with the reference and the policy: in the terminal, on a local page, over HTTP."""
