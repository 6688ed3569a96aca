"""The text track in the report."""
