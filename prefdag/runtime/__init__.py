"""What every stage is made of: its parameters, and files that are written atomically."""
