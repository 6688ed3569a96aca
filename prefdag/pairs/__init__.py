"""Preference pairs: from records in many formats to token ids in splits."""
