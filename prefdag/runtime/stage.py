"""Turns a function into a stage of the DAG. Its arguments are the keys of params.yaml that the stage reads.

    @stage  # or @torch_stage, if it needs torch, or @distributed_stage, if several processes can share its work
    def main(beta: Positive, dpo_text: DpoText) -> None: ...

    if __name__ == "__main__":
        main.run()

`python -m stages.NAME` checks the whole params.yaml, then calls `main` with its sections. Each section is an instance of the
class that annotates the argument. `make dag` writes the arguments into dvc.yaml (see docs/pipeline.md).

A stage under `foreach` in dvc.yaml takes the key as a positional-only argument. `python -m stages.NAME 2` is the stage NAME@2:

    def main(number: Literal[1, 2, 3], /, beta: Positive) -> None: ...
"""

import argparse
import gc
import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter

from prefdag.lifecycle.environment import set_environment, use_utf8
from prefdag.lifecycle.errors import DataError
from prefdag.lifecycle.exits import flush, one_line_errors
from prefdag.lifecycle.launcher import end_with_parent, follow_launch, launch, to_launch
from prefdag.lifecycle.lock import end_with_dvc, stage_lock
from prefdag.lifecycle.warm import can_fork, forked, run_forked
from prefdag.runtime.dvc_files import DAG, names, read_stage
from prefdag.runtime.running import running
from prefdag.runtime.yaml import read_yaml
from prefdag.tracking.durations import note_duration

PARAMS = Path("params.yaml")
MADE = ("data/", "models/", "reports/")  # where outputs of stages are


@dataclass(frozen=True)
class stage:  # noqa: N801 - it is used as a decorator
    """A stage. Calling it calls `main`; `run` is its command line."""

    main: Callable[..., None]
    torch: bool = False  # whether it needs torch, which takes seconds to import
    distributed: bool = False  # whether several processes can share its work

    @property
    def name(self) -> str:
        """The module's name, even when it runs as `__main__`."""
        return Path(inspect.getfile(self.main)).stem

    @property
    def number(self) -> inspect.Parameter | None:
        """The argument that tells the stages of a `foreach` apart, if it is one."""
        first = next(iter(inspect.signature(self.main).parameters.values()), None)
        return first if first is not None and first.kind is first.POSITIONAL_ONLY else None

    def named(self, number: int | None) -> str:
        """The stage's name in dvc.yaml."""
        return self.name if number is None else f"{self.name}@{number}"

    @property
    def types(self) -> dict[str, Any]:
        """The classes of the sections that the stage reads, by key of params.yaml; `params` stands for all of them."""
        each = inspect.signature(self.main).parameters.values()
        return {one.name: one.annotation for one in each if one.kind is not one.POSITIONAL_ONLY}

    @property
    def keys(self) -> list[str]:
        """The top-level keys of params.yaml that the stage reads; `params` stands for all of them."""
        return list(self.types)

    def __call__(self, *arguments: Any, **named: Any) -> None:
        """Call `main` with its sections, as the current stage (see `running`)."""
        bound = inspect.signature(self.main).bind(*arguments, **named)
        sections = {key: value for key, value in bound.arguments.items() if key in self.types}
        number = bound.arguments[self.number.name] if self.number else None
        with running(self.named(number), sections):
            self.main(*bound.args, **bound.kwargs)

    def sections(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The sections that `main` takes from the content of params.yaml; an argument called `params` gets all of it."""
        # JSON mode is strict about types, but accepts a mapping for a dataclass.
        return {
            name: TypeAdapter(kind).validate_json(json.dumps(tree if name == "params" else tree[name]))
            for name, kind in self.types.items()
        }

    def check_inputs(self, name: str) -> None:
        """Raise `DataError` if an input is absent. Libraries would each report that in their own way."""
        if not DAG.exists():
            return
        for dep in names(read_stage(name), "deps"):
            if dep.startswith(MADE) and not Path(dep).exists():
                raise DataError(f"{dep}: not found; `dvc repro` makes it")

    def run(self) -> None:
        """Run the stage in the current directory. When run as a script, this ends the process.

        Exit codes: 0; 1, 2 or 3 (see `errors`); 130 if interrupted.
        """
        if self.main.__module__ == "__main__":
            use_utf8()
        with one_line_errors(self.name):
            parser = argparse.ArgumentParser(
                f"python -m stages.{self.name}",
                description=sys.modules[self.main.__module__].__doc__,
                epilog=f"Reads from params.yaml: {', '.join(self.keys) or 'nothing'}. dvc.yaml lists inputs and outputs.",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            if self.number:
                parser.add_argument(
                    "number", type=int, choices=get_args(self.number.annotation), help="which of the stages in dvc.yaml"
                )
            numbers: list[int] = list(vars(parser.parse_args()).values())
            name = self.named(numbers[0] if numbers else None)
            command = [f"stages.{self.name}", *map(str, numbers)]
            dvc = None
            if not forked():
                set_environment()
                dvc = end_with_dvc()
                end_with_parent()
                follow_launch()
            gc.set_threshold(100_000)  # importing torch creates objects for seconds, and none of them is garbage
            logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
            logging.getLogger("prefdag").setLevel(logging.INFO)
            tree = read_yaml(PARAMS)
            if not forked():
                from prefdag.check_code import check_code
                from prefdag.check_params import check_params
                from prefdag.lifecycle.version import check_version

                check_version()
                check_params(tree, PARAMS)
                self.check_inputs(name)
                check_code(self.name)
            if self.distributed and to_launch():
                launch(command)
                return
            from_the_start = self.torch and not self.distributed
            if dvc and not to_launch() and can_fork() and run_forked(command, dvc, self.torch, from_the_start):
                return
            with stage_lock(name):
                start = time.monotonic()
                self(*numbers, **self.sections(tree))
                note_duration(name, time.monotonic() - start)
        if self.main.__module__ == "__main__":
            # Everything is written and closed. Tearing down torch's modules would take two more seconds per stage.
            logging.shutdown()
            with suppress(OSError):
                flush(sys.stderr)
            os._exit(0)


torch_stage = partial(stage, torch=True)
"""The decorator of a stage that needs torch (see `prefdag.lifecycle.warm`)."""

distributed_stage = partial(stage, torch=True, distributed=True)
"""The decorator of a stage whose work several processes share, with torch (see `prefdag.lifecycle.launcher`)."""
