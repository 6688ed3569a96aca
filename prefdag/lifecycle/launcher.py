"""Runs a stage in several processes: with the command that PREFDAG_LAUNCHER holds, such as `torchrun --nproc-per-node 8`.

The launcher belongs to the machine, not to the result. So it stands in the environment, and dvc.lock has the same commands on
every machine. The first process, the one that DVC started, only checks, launches and waits. To DVC and the user it looks like
the stage itself: it passes signals on, and ends with the exit code and the line of the process that failed first.

Signals and failures are files in a folder that all processes watch. So a failure that one line tells ends all processes without
a word of the launcher, which would print a report of thirty lines. Of a process that crashed, only the launcher tells.
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
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prefdag.lifecycle.errors import ParamsError, PrefdagError
from prefdag.lifecycle.interruption import received_by

if TYPE_CHECKING:
    import psutil

LAUNCHER = "PREFDAG_LAUNCHER"
FAILURE = "PREFDAG_FAILURE"  # for the launched processes: the file that gets the first failure
# Files beside it: a process has started; the number of a signal that all are to get.
STARTED, SIGNAL = "started", "signal"
GRACE = 10.0  # seconds that processes have to end after a failure, before the launcher ends them
PARENT = "PREFDAG_LAUNCHED_BY"  # host and process id


class LaunchError(PrefdagError):
    """A launched process failed, with this line and this exit code."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self.exit_code = code


def started_by_launcher() -> bool:
    """Whether this process is one of several. A launcher sets both; a RANK alone is somebody else's variable."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """0 for the first process, or if it is the only one. Only that one writes, tracks and holds locks."""
    return int(os.environ["RANK"]) if started_by_launcher() else 0


def launched() -> bool:
    """Whether this process was started with PREFDAG_LAUNCHER."""
    return FAILURE in os.environ


def to_launch() -> bool:
    """Whether a stage that can use several processes has to start them. Raises `ParamsError` if a launcher did not."""
    if not os.environ.get(LAUNCHER) or started_by_launcher():
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
        with received_by(_passed_on(process, failure)):
            code = _wait(process, failure)
        noted = _read(failure)
        if code == 0 and noted is None:
            return
        line, code = noted or (f"'{command[0]}' ended with exit code {code}; its own lines above say why", 1)
        if code == 130:
            raise KeyboardInterrupt
        raise LaunchError(line.removeprefix("error: "), code)


def _shared_folder() -> Path:
    """A folder that the processes on every machine see: that of the project."""
    folder = Path(".prefdag").absolute()
    folder.mkdir(exist_ok=True)
    return folder


def _passed_on(process: "subprocess.Popen[bytes]", failure: Path) -> Callable[[int, object], None]:
    """A handler of signals. The launched processes get the first one; a second one, and one that comes before they have
    started, goes to the launcher, which ends them at once."""
    started, sent = failure.with_name(STARTED), failure.with_name(SIGNAL)

    def receive(number: int, frame: object) -> None:
        try:
            if started.exists() and not sent.exists():
                sent.with_suffix(".part").write_text(str(number))
                sent.with_suffix(".part").rename(sent)
                return
        except OSError:  # a full disk
            pass
        process.send_signal(number)

    return receive


def _wait(process: "subprocess.Popen[bytes]", failure: Path) -> int:
    """Wait for the launcher, and return its exit code. If it goes on after a failure, end it."""
    deadline = None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(1)
        if deadline is None and failure.exists():
            deadline = time.monotonic() + GRACE
        elif deadline is not None and time.monotonic() > deadline:
            process.terminate()
            deadline += GRACE


def note_failure(line: str, code: int) -> int:
    """In a launched process: note why it failed, if no other one has before. Returns the exit code to end with: 0 if the
    failure is noted, so that the launcher says nothing."""
    path = os.environ[FAILURE]
    part = Path(f"{path}.{socket.gethostname()}.{os.getpid()}")
    try:
        part.write_text(json.dumps({"line": line, "code": code}), "utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(part, path)  # unlike a rename, it fails if there is one
    except OSError:
        return code
    return 0


def another_failed() -> bool:
    """In a launched process: whether another one has noted a failure."""
    return launched() and Path(os.environ[FAILURE]).exists()


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


def follow_launch() -> None:
    """In a launched process: receive the signals that the waiting one gets, and end soon after the failure of another one."""
    if not launched():
        return
    failure = Path(os.environ[FAILURE])
    with contextlib.suppress(OSError):
        failure.with_name(STARTED).touch()
    number = failure.with_name(SIGNAL)

    def watch() -> None:
        received = False
        while not failure.exists():
            time.sleep(0.2)
            if not received and number.exists():
                received = True
                os.kill(os.getpid(), int(number.read_text()))
        time.sleep(GRACE / 5)  # most end by themselves: what they send to the one that failed does not arrive
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def end_with(process: "psutil.Process") -> None:
    """Receive SIGTERM when another process dies."""

    def watch() -> None:
        process.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
