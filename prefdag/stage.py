"""How a function becomes a DAG stage: its arguments are the keys of params.yaml that it reads.

    @stage
    def main(beta: float, dpo_text: DpoText) -> None: ...

    if __name__ == "__main__":
        main.run()

`python -m stages.NAME` checks params.yaml, calls `main` with those keys, and turns a `PrefdagError` into one line and an
exit code. A test compares the arguments with the stage's `params` in dvc.yaml.
"""

import argparse
import ctypes
import errno
import gc
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from prefdag.config import Params, load_params
from prefdag.errors import PrefdagError

# Set before any library is imported: no telemetry.
ENVIRONMENT = {
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Threads that wait without spinning. Alone, a stage is a quarter slower for it; beside another one, more than twice as fast.
IN_COMPANY = {"KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE"}
# The operating system's refusals that a user can mend; any other OSError is a fault of ours and keeps its traceback.
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


def set_environment() -> None:
    """Put `ENVIRONMENT`, and `IN_COMPANY` beside other stages, into this process and its children, under the user's own."""
    for name, value in {**ENVIRONMENT, **(IN_COMPANY if other_stages() else {})}.items():
        os.environ.setdefault(name, value)


def other_stages() -> bool:
    """Whether another process on this machine runs a stage: of a queue, of another clone, or a rank of the same one."""
    commands = (
        process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]) if process.pid != os.getpid()
    )
    return any("-m" in command and any(part.startswith("stages.") for part in command) for command in commands)


@dataclass(frozen=True)
class stage:  # noqa: N801 - it is used as a decorator
    """A stage's `main`, to be called with its parameters, and `run`, its command line."""

    main: Callable[..., None]

    @property
    def name(self) -> str:
        """The module's name, also where it runs as `__main__`."""
        return Path(inspect.getfile(self.main)).stem

    @property
    def keys(self) -> list[str]:
        """The top-level keys of params.yaml that the stage reads; an argument called `params` is all of them."""
        names = list(inspect.signature(self.main).parameters)
        return [field.name for field in fields(Params)] if names == ["params"] else names

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
        try:
            params = load_params()
            with alone(self.name):
                self.main(*(getattr(params, name, params) for name in inspect.signature(self.main).parameters))
        except PrefdagError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            print(f"error: {error.filename or self.name}: {error.strerror}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print(f"{self.name}: interrupted; run it again to continue", file=sys.stderr)
            sys.exit(130)
        if self.main.__module__ == "__main__":
            # All is written and closed. To take torch's modules apart one by one would last two more seconds a stage.
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def end_with_dvc() -> None:
    """Under DVC: get SIGTERM when it dies, lest a killed `dvc repro` leave a trainer behind. On Linux alone."""
    if "DVC_STAGE" in os.environ and sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Refuse a second run of a stage in this directory: the trainer that a killed `dvc repro` left behind, say."""
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:  # one of several processes that `accelerate launch` started
        yield
        return
    path = Path(".prefdag", "locks", f"{name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise PrefdagError(f"{name}: already running in this directory; stop that process or wait for it") from None
