"""The verdict on a finished DPO run."""
