"""How a function becomes a DAG stage: its arguments are the keys of params.yaml that it reads.

    @stage
    def main(beta: float, dpo_text: DpoText) -> None: ...

    if __name__ == "__main__":
        main.run()

`python -m stages.NAME` checks params.yaml, calls `main` with those keys, turns a `PrefdagError` into one line and an
exit code, and notes how long it took. A test compares the arguments with the stage's `params` in dvc.yaml.
"""

import argparse
import errno
import gc
import hashlib
import inspect
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from prefdag.artifacts import read_json, scratch, writing
from prefdag.config import Params, load_params, read_yaml
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
                began = time.monotonic()
                self.main(*(getattr(params, name, params) for name in inspect.signature(self.main).parameters))
                note_duration(self.name, time.monotonic() - began)
        except PrefdagError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        except Exception as error:
            number = system_error(error)
            if number not in REFUSALS:
                raise
            print(f"error: {getattr(error, 'filename', None) or self.name}: {os.strerror(number)}", file=sys.stderr)
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
    """Under DVC: get SIGTERM when it dies, lest a killed `dvc repro` leave a trainer behind.

    That the parent dies would not do: it may be a shell, or a launcher, that DVC started and that outlives it.
    """
    if stage := os.environ.get("DVC_STAGE"):  # which DVC sets for its children, and is without
        dvc = next(each for each in psutil.Process().parents() if each.environ().get("DVC_STAGE") != stage)

        def watch() -> None:
            dvc.wait()
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=watch, daemon=True).start()


def system_error(error: Exception) -> int | None:
    """The operating system's error number behind an exception, where there is one.

    Libraries written in Rust, safetensors among them, raise exceptions of their own that quote it.
    """
    if isinstance(error, OSError):
        return error.errno
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    return int(quoted[1]) if quoted else None


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


PROBE = 2**20  # bytes at either end by which a large file is known


def note_duration(name: str, seconds: float) -> None:
    """Keep how long a stage took to make the outputs that now lie there, in the scratch folder that experiments share.

    An output would not do: it would differ from rebuild to rebuild. Only the first of several processes notes anything.
    """
    if int(os.environ.get("RANK", "0")) > 0 or not Path("dvc.yaml").exists():
        return
    with writing(_duration_path(name)) as path:
        path.write_text(json.dumps({"seconds": round(seconds, 3)}), "utf-8")


def durations() -> dict[str, float | None]:
    """Of every stage of dvc.yaml, in its order, how many seconds it took to make the outputs that now lie there.

    Also where DVC restored them since, in whatever experiment; None where this repository never saw them made.
    """
    paths = {name: _duration_path(name) for name in read_yaml(Path("dvc.yaml"))["stages"]}
    return {name: float(read_json(path)["seconds"]) if path.exists() else None for name, path in paths.items()}


def _duration_path(name: str) -> Path:
    """The note for a stage's outputs, by their names, sizes and bytes: of large files those at either end."""
    entry = read_yaml(Path("dvc.yaml"))["stages"][name]
    listed = [item for key in ("outs", "metrics") for item in entry.get(key, [])]
    digest = hashlib.sha256()
    for out in (Path(item if isinstance(item, str) else next(iter(item))) for item in listed):
        for file in sorted(path for path in (out, *out.rglob("*")) if path.is_file()):
            size = file.stat().st_size
            with file.open("rb") as stream:
                head = stream.read(PROBE)
                stream.seek(max(0, size - PROBE))
                digest.update(f"{file.as_posix()}\0{size}\0".encode() + head + stream.read())
    return scratch("durations", f"{name}-{digest.hexdigest()[:16]}.json")
