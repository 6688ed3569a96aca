"""One thin script a stage of dvc.yaml, run as `python -m stages.NAME`."""

import sys

from prefdag.lifecycle.exits import quiet_interrupts

if sys.argv[:1] == ["-m"]:  # Python is about to run a stage: Ctrl-C during its imports is one line
    quiet_interrupts()
