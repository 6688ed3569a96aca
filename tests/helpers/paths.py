"""Paths of the project."""

from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"  # published data sets; without them, their tests are skipped
