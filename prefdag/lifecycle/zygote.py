"""Imports the libraries of the stages, then forks itself into each of them. `warm.py` starts and asks it.

    python -m prefdag.lifecycle.zygote LISTENER PIDFD FROM_THE_START

LISTENER and PIDFD are file descriptors: a listening socket, and the process to end with. FROM_THE_START is 1 if the stages that
read and check data are still to come.

It imports nothing of the project's own, so a stage always runs the code that is on disk.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# What the stages that compute import, in the end. One that is missing costs a stage its import; one too many costs memory.
LIBRARIES = (
    "torch",
    "torch.distributed.tensor",
    "torchvision",
    "pandas",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "scipy.stats",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "accelerate",
    "peft",
    "safetensors.torch",
    "ruamel.yaml",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
)
OTHERS = ("great_expectations.expectations", "matplotlib.figure", "jinja2")  # of stages that only read and write
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # linux/prctl.h


def serve(listener: socket.socket, pidfd: int, later: Sequence[str]) -> list[str] | None:
    """Serve one stage after the other, until the process of `pidfd` ends. Import `later` while the first one runs.

    Returns:
        In a fork: the module to run, and its arguments. Otherwise None.
    """
    for library in LIBRARIES:
        if select.select([pidfd], [], [], 0)[0]:
            return None
        import_(library)
    rest = [*later]
    while pidfd not in select.select([listener.fileno(), pidfd], [], [])[0]:
        connection, _ = listener.accept()
        with connection, suppress(OSError, ValueError):  # whoever asked may have gone
            connection.sendall(b"ready\n")
            asked, streams, _, _ = socket.recv_fds(connection, 4, 3)
            request = json.loads(connection.recv(int.from_bytes(asked), socket.MSG_WAITALL))
            gc.freeze()  # what is shared with the forks is not written to by their garbage collection
            if not (pid := os.fork()):
                listener.close()
                become(request["command"][0], request["environment"], streams, connection.dup())
                return list(request["command"])
            for stream in streams:
                os.close(stream)
            connection.sendall(b"%d\n" % pid)
            while rest and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                import_(rest.pop(0))
            _, status = os.waitpid(pid, 0)
            connection.sendall(b"%d\n" % status)
    return None


def import_(library: str) -> None:
    """Import a library, if that works: otherwise the stage that needs it will say so."""
    with suppress(Exception):
        importlib.import_module(library)


def become(module: str, environment: dict[str, str], streams: list[int], connection: socket.socket) -> None:
    """Take over the name, the environment and the standard streams of the process that asked, and end when it ends."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_NAME, module.encode())  # as `top` shows it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()


def end_with(connection: socket.socket) -> None:
    """Kill this process when its peer closes the connection."""
    with suppress(OSError):
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    listening, outlived, from_the_start = (int(each) for each in sys.argv[1:])
    with socket.socket(fileno=listening) as listening_socket:
        asked_for = serve(listening_socket, outlived, OTHERS if from_the_start else ())
        path = listening_socket.getsockname() if asked_for is None else ""
    if asked_for is None:
        with suppress(OSError):
            Path(path).unlink()
        os._exit(0)
    module, *sys.argv[1:] = asked_for
    runpy.run_module(module, run_name="__main__", alter_sys=True)
