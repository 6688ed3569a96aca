"""Rows of preference data in the formats of other projects: files, records, fields, dialogues, pairs."""
