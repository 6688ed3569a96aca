"""From raw files to checked, formatted, split rows. Imports no torch."""
