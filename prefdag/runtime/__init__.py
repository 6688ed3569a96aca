"""What every stage runs on: files written whole, errors, progress, processes, locks."""
