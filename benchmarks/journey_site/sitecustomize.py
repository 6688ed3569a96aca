"""Notes how long a stage trains, scores and samples. With this folder in PYTHONPATH, Python imports it when it starts.

Each outermost call of `WORK` adds its seconds as a line to the file that $PREFDAG_WORK names.
"""

import functools
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

WORK = {
    "prefdag.train.loop": "fit",
    "prefdag.distributed.sharing": "shared_out",
    "prefdag.text.generation.decoding": "continuations",
    "prefdag.image.classify": "class_logps",
}
within = False


def timed(work: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that the time of every call that is not within another one is noted."""

    @functools.wraps(work)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        global within
        if within:
            return work(*arguments, **named)
        within, start = True, time.perf_counter()
        try:
            return work(*arguments, **named)
        finally:
            within = False
            with Path(os.environ["PREFDAG_WORK"]).open("a", encoding="utf-8") as file:
                print(time.perf_counter() - start, file=file)

    return wrapper


class Timing(MetaPathFinder, Loader):
    """Imports the modules of `WORK` as they are, and wraps their functions before anybody gets them."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in WORK:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            setattr(module, WORK[name], timed(getattr(module, WORK[name])))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "PREFDAG_WORK" in os.environ:
    sys.meta_path.insert(0, Timing())
