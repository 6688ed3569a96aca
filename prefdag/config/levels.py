"""What a stage does about a row that fails a check."""

from typing import Literal

Level = Literal["error", "drop", "warn"]  # stop; leave the row out, and list it; keep it, and list it
