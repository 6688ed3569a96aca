"""Turns a function into a stage of the DAG. Its arguments are the keys of params.yaml that the stage reads.

    @stage  # or @distributed_stage, if several processes can share its work
    def main(beta: Positive, dpo_text: DpoText) -> None: ...

    if __name__ == "__main__":
        main.run()

`python -m stages.NAME` checks the whole params.yaml, then calls `main` with its sections. Each section is an instance of the
class that annotates the argument. `make dag` writes the arguments into dvc.yaml (see docs/pipeline.md).
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
from typing import Any

from pydantic import TypeAdapter

from prefdag.lifecycle.environment import set_environment, use_utf8
from prefdag.lifecycle.errors import DataError
from prefdag.lifecycle.exits import flush, one_line_errors
from prefdag.lifecycle.launcher import end_with_parent, follow_launch, launch, to_launch
from prefdag.lifecycle.lock import end_with_dvc, stage_lock
from prefdag.lifecycle.warm import can_fork, forked, run_forked
from prefdag.runtime.dvc_files import DAG, names, read_dag
from prefdag.runtime.running import running
from prefdag.runtime.yaml import read_yaml
from prefdag.tracking.durations import note_duration

PARAMS = Path("params.yaml")
MADE = ("data/", "models/", "reports/")  # where outputs of stages are


@dataclass(frozen=True)
class stage:  # noqa: N801 - it is used as a decorator
    """A stage. Calling it calls `main`; `run` is its command line."""

    main: Callable[..., None]
    distributed: bool = False  # whether several processes can share its work

    @property
    def name(self) -> str:
        """The module's name, even when it runs as `__main__`."""
        return Path(inspect.getfile(self.main)).stem

    @property
    def keys(self) -> list[str]:
        """The top-level keys of params.yaml that the stage reads; `params` stands for all of them."""
        return list(inspect.signature(self.main).parameters)

    def __call__(self, *arguments: Any, **named: Any) -> None:
        """Call `main` with its sections, as the current stage (see `running`)."""
        sections = inspect.signature(self.main).bind(*arguments, **named).arguments
        with running(self.name, sections):
            self.main(**sections)

    def sections(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `main` from the content of params.yaml; an argument called `params` gets all of it."""
        types = {name: parameter.annotation for name, parameter in inspect.signature(self.main).parameters.items()}
        # JSON mode is strict about types, but accepts a mapping for a dataclass.
        return {
            name: TypeAdapter(kind).validate_json(json.dumps(tree if name == "params" else tree[name]))
            for name, kind in types.items()
        }

    def check_inputs(self) -> None:
        """Raise `DataError` if an input is absent. Libraries would each report that in their own way."""
        if not DAG.exists():
            return
        for dep in names(read_dag().get(self.name, {}), "deps"):
            if dep.startswith(MADE) and not Path(dep).exists():
                raise DataError(f"{dep}: not found; `dvc repro` makes it")

    def run(self) -> None:
        """Run the stage in the current directory. When run as a script, this ends the process.

        Exit codes: 0; 1, 2 or 3 (see `errors`); 130 if interrupted.
        """
        if self.main.__module__ == "__main__":
            use_utf8()
        with one_line_errors(self.name):
            argparse.ArgumentParser(
                f"python -m stages.{self.name}",
                description=sys.modules[self.main.__module__].__doc__,
                epilog=f"Reads from params.yaml: {', '.join(self.keys) or 'nothing'}. dvc.yaml lists inputs and outputs.",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            ).parse_args()
            if not forked():
                set_environment()
                dvc = end_with_dvc()
                end_with_parent()
                follow_launch()
                module = f"stages.{self.name}"
                if dvc and self.distributed and not to_launch() and can_fork() and run_forked(module, dvc):
                    return
            gc.set_threshold(100_000)  # importing torch creates objects for seconds, and none of them is garbage
            logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
            logging.getLogger("prefdag").setLevel(logging.INFO)
            from prefdag.check_params import check_params
            from prefdag.lifecycle.version import check_version

            check_version()
            tree = read_yaml(PARAMS)
            check_params(tree, PARAMS)
            self.check_inputs()
            if self.distributed and to_launch():
                launch(f"stages.{self.name}")
                return
            with stage_lock(self.name):
                start = time.monotonic()
                self(**self.sections(tree))
                note_duration(self.name, time.monotonic() - start)
        if self.main.__module__ == "__main__":
            # Everything is written and closed. Tearing down torch's modules would take two more seconds per stage.
            logging.shutdown()
            with suppress(OSError):
                flush(sys.stderr)
            os._exit(0)


distributed_stage = partial(stage, distributed=True)
"""The decorator of a stage whose work several processes share (see `prefdag.lifecycle.launcher`)."""
