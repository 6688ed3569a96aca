"""A cluster of two virtual nodes on this machine: a real slurmctld, two slurmd, and munge, from Debian's packages."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "mungekey")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""
# Python may lie in a folder that only root may enter, such as /root. The nodes then see only Python's own folder in there.
OPENED = """\
set -e
mkdir -p {place}
mount --bind {prefix} {place}
mount -t tmpfs -o mode=755 none {closed}
mkdir -p {prefix}
mount --bind {place} {prefix}
exec "$@"
"""


@contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Start the cluster, whose files are in `folder`. Yields the environment with which Slurm's programs find it."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=path)]:
        pytest.skip(f"no {missing[0]}: apt-get install slurmctld slurmd slurm-client munge")
    if os.geteuid() != 0:
        pytest.skip("only root starts jobs of other users")
    (folder / "state").mkdir()
    port = _free_ports(3)
    config = folder / "slurm.conf"
    names = {"host": socket.gethostname(), "port": port, "first": port + 1, "last": port + 2}
    config.write_text(CONFIG.format(folder=folder, **names))
    environment = os.environ | {"PATH": path, "SLURM_CONF": str(config)}
    key, munge = folder / "munge.key", folder / "munge.socket"
    subprocess.run(["mungekey", "--create", f"--keyfile={key}"], check=True, env=environment)
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
    with ExitStack() as stack:

        def start(*command: str) -> None:
            log = stack.enter_context((folder / f"{Path(command[0]).name}.out").open("a"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}", *files)
        _wait_for(munge.exists, folder)
        start("slurmctld", "-D", "-i")
        for node in ("n1", "n2"):
            start(*_opened(folder, node), "slurmd", "-D", "-N", node)
        _wait_for(lambda: _idle(environment), folder)
        yield environment


def _opened(folder: Path, node: str) -> list[str]:
    """What to put before a command so that other users can run this Python under it."""
    prefix = Path(sys.base_prefix)
    closed = next((parent for parent in reversed(prefix.parents) if not parent.stat().st_mode & 0o001), None)
    if closed is None:
        return []
    places = {"place": folder / f"python-{node}", "prefix": prefix, "closed": closed}
    script = OPENED.format(**{name: shlex.quote(str(path)) for name, path in places.items()})
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


def _free_ports(n: int) -> int:
    """The first of `n` free ports in a row."""
    for first in range(31000, 32000, n):
        with ExitStack() as stack:
            try:
                for port in range(first, first + n):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise OSError("no free ports")


def _idle(environment: dict[str, str]) -> bool:
    done = subprocess.run(["sinfo", "-h", "-o", "%D %t"], env=environment, capture_output=True, text=True)
    return done.stdout.split() == ["2", "idle"]


def _wait_for(ready: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        logs = [path.read_text()[-2000:] for path in (*folder.glob("*.log"), *folder.glob("*.out"))]
        assert time.monotonic() < deadline, "\n".join(logs)
        time.sleep(0.2)
