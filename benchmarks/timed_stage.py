"""Run a stage in the current folder, as `python -m stages.NAME` does, and print how long it imported, as JSON.

    python benchmarks/timed_stage.py NAME

Counted are the outermost imports of the main thread, wherever they stand: what the stage waited for. Most stand inside
functions, where a look at the import statements of the script would miss them. MLflow is not counted where a thread imports
it beside the training.
"""

import builtins
import functools
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

seconds = 0.0
importing = False


def timed(load: Callable[..., Any]) -> Callable[..., Any]:
    """`load`, adding to `seconds` what a call takes that no other import has made."""

    @functools.wraps(load)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        global seconds, importing
        if importing or threading.current_thread() is not threading.main_thread():
            return load(*args, **kwargs)
        importing, start = True, time.perf_counter()
        try:
            return load(*args, **kwargs)
        finally:
            seconds += time.perf_counter() - start
            importing = False

    return wrapper


if __name__ == "__main__":
    name = sys.argv.pop()
    sys.path[0] = str(Path.cwd())  # as -m has it
    builtins.__import__ = timed(builtins.__import__)
    importlib.import_module = timed(importlib.import_module)
    importlib.import_module(f"stages.{name}").main.run()
    print(json.dumps({"import_seconds": seconds}), flush=True)
    sys.stderr.flush()
    os._exit(0)  # as a stage ends: torch's modules are not taken apart
