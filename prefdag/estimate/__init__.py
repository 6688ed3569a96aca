"""Memory and time of the stages that compute with the language model, before they run."""
