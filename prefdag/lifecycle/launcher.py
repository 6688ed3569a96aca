"""Runs a stage in several processes: with the command that PREFDAG_LAUNCHER holds, such as `torchrun --nproc-per-node 8`.

The launcher belongs to the machine, not to the result. So it stands in the environment, and dvc.lock has the same commands on
every machine. The first process, the one that DVC started, only checks, launches and waits. To DVC and the user it looks like
the stage itself: it passes signals on, and ends with the exit code and the line of the process that failed first.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prefdag.lifecycle.errors import ParamsError, PrefdagError
from prefdag.lifecycle.interruption import received_by

if TYPE_CHECKING:
    import psutil

LAUNCHER = "PREFDAG_LAUNCHER"
FAILURE = "PREFDAG_FAILURE"  # for the launched processes: the file that gets the first failure
PARENT = "PREFDAG_LAUNCHED_BY"  # host and process id


class LaunchError(PrefdagError):
    """A launched process failed, with this line and this exit code."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self.exit_code = code


def rank() -> int:
    """0 for the first process, or if it is the only one. Only that one writes, tracks and holds locks."""
    return int(os.environ.get("RANK", "0"))


def launched() -> bool:
    """Whether this process was started with PREFDAG_LAUNCHER."""
    return FAILURE in os.environ


def to_launch() -> bool:
    """Whether a stage that can use several processes has to start them. Raises `ParamsError` if a launcher did not."""
    if not os.environ.get(LAUNCHER) or "RANK" in os.environ:
        return False
    if launched():
        raise ParamsError(
            f"{LAUNCHER}: '{os.environ[LAUNCHER]}' sets no RANK; use torchrun, accelerate launch, or srun torchrun"
        )
    return True


def launch(module: str) -> None:
    """Run `python -m MODULE` with the launcher, and wait for its processes.

    Raises:
        LaunchError: one of them failed.
        KeyboardInterrupt: they were interrupted.
        ParamsError: the launcher does not exist.
    """
    with tempfile.TemporaryDirectory(prefix="launch-", dir=_shared_folder()) as folder:
        failure = Path(folder, "failure.json")
        command = [*shlex.split(os.environ[LAUNCHER]), "-m", module]
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            FAILURE: str(failure),
            PARENT: f"{socket.gethostname()} {os.getpid()}",
        }
        try:
            # In a session of its own, so that Ctrl-C on the terminal reaches it once: through this process.
            process = subprocess.Popen(command, env=environment, start_new_session=True)
        except OSError as error:
            raise ParamsError(f"{LAUNCHER}: '{command[0]}' cannot be started: {error.strerror}") from None
        with received_by(lambda number, frame: process.send_signal(number)):  # passed on
            code = process.wait()
        if code == 0:
            return
        line, code = _read(failure) or (f"'{command[0]}' ended with exit code {code}; its own lines above say why", 1)
        if code == 130:
            raise KeyboardInterrupt
        raise LaunchError(line.removeprefix("error: "), code)


def _shared_folder() -> Path:
    """A folder that the processes on every machine see: that of the project."""
    folder = Path(".prefdag").absolute()
    folder.mkdir(exist_ok=True)
    return folder


def note_failure(line: str, code: int) -> bool:
    """In a launched process: note why it failed. False if another one has failed before, so that nothing needs to be said."""
    if not (path := os.environ.get(FAILURE)):
        return True
    part = Path(f"{path}.{socket.gethostname()}.{os.getpid()}")
    with contextlib.suppress(OSError):
        part.write_text(json.dumps({"line": line, "code": code}), "utf-8")
        try:
            os.link(part, path)  # unlike a rename, it fails if there is one
        except FileExistsError:
            return False
    return True


def _read(failure: Path) -> tuple[str, int] | None:
    if not failure.exists():
        return None
    noted: Mapping[str, str] = json.loads(failure.read_text("utf-8"))
    return noted["line"], int(noted["code"])


def end_with_parent() -> None:
    """In a launched process on the machine of the one that launched it: receive SIGTERM when that one dies."""
    host, _, pid = os.environ.get(PARENT, "").partition(" ")
    if host != socket.gethostname():
        return
    import psutil  # commands import this module, too

    try:
        end_with(psutil.Process(int(pid)))
    except psutil.NoSuchProcess:
        os.kill(os.getpid(), signal.SIGTERM)


def end_with(process: "psutil.Process") -> None:
    """Receive SIGTERM when another process dies."""

    def watch() -> None:
        process.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
