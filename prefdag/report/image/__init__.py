"""The image track in the report."""
