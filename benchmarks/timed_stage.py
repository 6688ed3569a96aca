"""Run a stage in the current folder, as `python -m stages.NAME` does, and print its import time as JSON.

    python benchmarks/timed_stage.py NAME

The outermost imports of the main thread are counted, wherever they are: this is the time the stage waited for. Most imports are
inside functions. MLflow does not count if a thread imports it during training.
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
    """Wrap `load` so that the time of every call that is not nested in another import is added to `seconds`."""

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
    sys.path[0] = str(Path.cwd())  # as with -m
    builtins.__import__ = timed(builtins.__import__)
    importlib.import_module = timed(importlib.import_module)
    importlib.import_module(f"stages.{name}").main.run()
    print(json.dumps({"import_seconds": seconds}), flush=True)
    sys.stderr.flush()
    os._exit(0)  # as a stage does, to skip tearing down torch's modules
