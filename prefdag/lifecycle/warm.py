"""Runs a stage as a fork of a process that has its libraries imported already, while one `dvc repro` lasts.

To import torch, transformers, peft and MLflow takes longer than many a stage does. The first stage under a DVC starts a process
that imports them (`zygote.py`). A stage that needs torch waits for that, and becomes a fork of it. Any other stage does so if
the process is ready, and goes on by itself otherwise. The process that DVC started waits for its fork: it passes signals on and
ends as the fork ends, so DVC and the user see no difference.
"""

import hashlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from prefdag.lifecycle.errors import PrefdagError
from prefdag.lifecycle.interruption import received_by
from prefdag.lifecycle.launcher import started_by_launcher

WARM = "PREFDAG_WARM"  # off: every stage imports everything by itself
FORKED = "PREFDAG_FORKED"  # for the fork
PATIENCE = 0.1  # seconds for a process that is ready to say so
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


def run_forked(command: Sequence[str], dvc: psutil.Process, waits: bool, from_the_start: bool = False) -> bool:
    """Run `python -m COMMAND`, a module and its arguments, as a fork, and wait for it.

    If it fails, this process ends as it did.

    Args:
        command: the module and its arguments.
        dvc: the process to serve.
        waits: whether to wait until the libraries are imported.
        from_the_start: whether the stages that read and check data are still to come.

    Returns:
        Whether it ran: False if no process can be asked, or none is ready.

    Raises:
        PrefdagError: the process that forks was killed meanwhile.
    """
    request = json.dumps({"command": command, "environment": {**os.environ, FORKED: "1"}}).encode()
    pid = status = b""
    with suppress(OSError), connect(dvc, from_the_start) as connection, connection.makefile("rb") as answers:
        if not waits and not select.select([connection], [], [], PATIENCE)[0]:
            return False
        answers.readline()  # as soon as the libraries are imported
        socket.send_fds(connection, [len(request).to_bytes(4)], [0, 1, 2])
        connection.sendall(request)
        if pid := answers.readline():
            with received_by(lambda number, frame: send(int(pid), number)):  # passed on
                status = answers.readline()
    if not pid:
        return False
    if not status:
        raise PrefdagError(f"{command[0]}: the process that runs it was killed; run it again to continue")
    end_as(int(status))
    return True


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def connect(dvc: psutil.Process, from_the_start: bool) -> socket.socket:
    """A connection to the process that forks. Without one for this DVC and all that a process inherits, it is started.

    It writes a line when it is ready.
    """
    folder = Path(".prefdag", "warm")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / hashlib.sha256(inherited(dvc).encode()).hexdigest()[:16]
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(str(path))
    except OSError:
        path.unlink(missing_ok=True)  # of one that was killed
        start(path, dvc, from_the_start)
        client.connect(str(path))
    return client


def start(path: Path, dvc: psutil.Process, from_the_start: bool) -> None:
    """Start the process that forks, listening on `path` until DVC ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        pidfd = os.pidfd_open(dvc.pid)
        try:
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "prefdag.lifecycle.zygote",
                    *map(str, (listener.fileno(), pidfd, int(from_the_start))),
                ],
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
