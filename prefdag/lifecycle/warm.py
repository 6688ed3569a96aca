"""Runs a stage as a fork of a process that has its libraries imported already, while one `dvc repro` lasts.

To import torch, transformers, peft and MLflow takes longer than many a stage does. The first stage that computes starts a
process that imports them (`zygote.py`), and becomes a fork of it, as do the next ones under the same DVC. The process that DVC
started waits: it passes signals on and ends as the fork ends, so DVC and the user see no difference.
"""

import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from prefdag.lifecycle.errors import PrefdagError
from prefdag.lifecycle.interruption import received_by
from prefdag.lifecycle.launcher import started_by_launcher

WARM = "PREFDAG_WARM"  # off: every stage imports everything by itself
FORKED = "PREFDAG_FORKED"  # for the fork
OWN = ("DVC_STAGE", FORKED)  # variables that differ between the stages of one `dvc repro`
# What a process inherits and a fork of another one would not have, in /proc/self/status.
INHERITED = ("Umask:", "Uid:", "Gid:", "Groups:", "CapEff:", "Cpus_allowed:", "Seccomp:")


def forked() -> bool:
    """Whether this stage is a fork. Everything that comes before its work was done by the process that asked for it."""
    return FORKED in os.environ


def can_fork() -> bool:
    """Not on a GPU, where a fork has never been tried. Not one of several processes, which a launcher counts. Not if a standard
    stream is closed, since it cannot be passed on."""
    gpu = Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()
    streams = None not in (sys.stdin, sys.stdout, sys.stderr)
    return (
        sys.platform == "linux" and os.environ.get(WARM) != "off" and streams and not gpu and not started_by_launcher()
    )


def run_forked(module: str, dvc: psutil.Process) -> bool:
    """Run `python -m MODULE` as a fork, and wait for it. If it fails, this process ends as it did.

    Returns:
        Whether it ran: False if no process can be asked.

    Raises:
        PrefdagError: the process that forks was killed meanwhile.
    """
    request = json.dumps({"module": module, "environment": {**os.environ, FORKED: "1"}}).encode()
    pid = status = b""
    with suppress(OSError), connect(dvc) as connection, connection.makefile("rb") as answers:
        socket.send_fds(connection, [len(request).to_bytes(4)], [0, 1, 2])
        connection.sendall(request)
        if pid := answers.readline():  # as soon as the libraries are imported
            with received_by(lambda number, frame: send(int(pid), number)):  # passed on
                status = answers.readline()
    if not pid:
        return False
    if not status:
        raise PrefdagError(f"{module}: the process that runs it was killed; run it again to continue")
    end_as(int(status))
    return True


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def connect(dvc: psutil.Process) -> socket.socket:
    """A connection to the process that forks. Without one for this DVC and all that a process inherits, it is started."""
    folder = Path(".prefdag", "warm")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / hashlib.sha256(inherited(dvc).encode()).hexdigest()[:16]
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(str(path))
    except OSError:
        path.unlink(missing_ok=True)  # of one that was killed
        start(path, dvc)
        client.connect(str(path))
    return client


def start(path: Path, dvc: psutil.Process) -> None:
    """Start the process that forks, listening on `path` until DVC ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        pidfd = os.pidfd_open(dvc.pid)
        try:
            subprocess.Popen(
                [sys.executable, "-m", "prefdag.lifecycle.zygote", str(listener.fileno()), str(pidfd)],
                pass_fds=(listener.fileno(), pidfd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(pidfd)


def inherited(dvc: psutil.Process) -> str:
    """All that a stage inherits from DVC, and DVC itself, as text."""
    status = Path("/proc/self/status").read_text("utf-8").splitlines()
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    return json.dumps(
        [
            *(sys.executable, sys.flags, str(Path.cwd()), environment, os.nice(0), dvc.pid, dvc.create_time()),
            *(line for line in status if line.startswith(INHERITED)),
            *(Path("/proc/self/limits").read_text("utf-8"), Path("/proc/self/cgroup").read_text("utf-8")),
        ]
    )


def end_as(status: int) -> None:
    """End this process with the status of another one, unless that is 0: its exit code, or the signal that killed it."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the other one's core is the one to look at
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    elif code:
        os._exit(code)
