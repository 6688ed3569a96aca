"""What every stage is made of: its parameters, files that are written atomically, and work on several cores."""
