"""The report page and the model card, and what both tracks share: numbers, settings, conclusions, figures."""
