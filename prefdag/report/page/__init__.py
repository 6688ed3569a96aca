"""The report's page: what is shown, in which words and figures."""
