"""What a stage does with a row that fails a check."""

from typing import Literal

Level = Literal["error", "drop", "warn"]  # stop the stage; list the row and leave it out; list the row and keep it
