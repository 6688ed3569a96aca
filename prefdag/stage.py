"""How a function becomes a DAG stage: its arguments are the keys of params.yaml that it reads.

    @stage
    def main(beta: Positive, dpo_text: DpoText) -> None: ...

    if __name__ == "__main__":
        main.run()

`python -m stages.NAME` checks params.yaml as a whole, then calls `main` with the sections it takes, each an instance of
the class that annotates the argument. docs/pipeline.md says what reruns a stage.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from prefdag.runtime.durations import note_duration
from prefdag.runtime.environment import set_environment
from prefdag.runtime.exits import one_line_errors
from prefdag.runtime.lock import end_with_dvc, stage_lock
from prefdag.runtime.running import running
from prefdag.runtime.yaml import read_yaml

PARAMS = Path("params.yaml")


@dataclass(frozen=True)
class stage:  # noqa: N801 - it is used as a decorator
    """A stage's `main`; calling the stage calls it, and `run` is its command line."""

    main: Callable[..., None]

    @property
    def name(self) -> str:
        """The module's name, also where it runs as `__main__`."""
        return Path(inspect.getfile(self.main)).stem

    @property
    def keys(self) -> list[str]:
        """The top-level keys of params.yaml that the stage reads; `params` is all of them."""
        return list(inspect.signature(self.main).parameters)

    def __call__(self, *arguments: Any, **named: Any) -> None:
        """Call `main` with its sections, as the stage that runs (see `running`)."""
        sections = inspect.signature(self.main).bind(*arguments, **named).arguments
        with running(self.name, sections):
            self.main(**sections)

    def sections(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `main`, from the content of params.yaml; an argument called `params` is all of it."""
        types = {name: parameter.annotation for name, parameter in inspect.signature(self.main).parameters.items()}
        # JSON mode: strict about types, yet a mapping is taken for a dataclass.
        return {
            name: TypeAdapter(kind).validate_json(json.dumps(tree if name == "params" else tree[name]))
            for name, kind in types.items()
        }

    def run(self) -> None:
        """Run the stage in the current directory; as a script, this ends the process.

        Exit codes: 0; 1, 2 or 3 (see `errors`); 130 when interrupted.
        """
        argparse.ArgumentParser(
            f"python -m stages.{self.name}",
            description=sys.modules[self.main.__module__].__doc__,
            epilog=f"Reads from params.yaml: {', '.join(self.keys) or 'nothing'}. Inputs and outputs stand in dvc.yaml.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        ).parse_args()
        set_environment()
        end_with_dvc()
        gc.set_threshold(100_000)  # importing torch makes objects for seconds, none of them garbage
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("prefdag").setLevel(logging.INFO)
        with one_line_errors(self.name):
            from prefdag.config.check import load_params

            load_params(PARAMS)
            with stage_lock(self.name):
                began = time.monotonic()
                self(**self.sections(read_yaml(PARAMS)))
                note_duration(self.name, time.monotonic() - began)
        if self.main.__module__ == "__main__":
            # All is written and closed. To take torch's modules apart one by one would last two more seconds a stage.
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
