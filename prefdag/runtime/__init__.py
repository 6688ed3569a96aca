"""What every stage uses: atomic files, errors, progress bars, processes, locks."""
