"""The language-model track: models and adapters, scoring, evaluation, generation."""
