"""The report page, the model card, the comparison of two experiments and the frontier."""
