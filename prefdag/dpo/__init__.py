"""Preference losses and reference models, shared by both tracks. Depends on neither text nor images."""
