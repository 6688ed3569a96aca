"""The servers of a team, on the loopback interface: PostgreSQL, and MLflow on it with users, as compose.yaml starts it.

The S3 server is that of buckets.py.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from paths import ROOT
from ruamel.yaml import YAML

LONGEST = 90.0  # seconds for a server to start


@dataclass(frozen=True)
class Mlflow:
    """A server whose administrator may do everything."""

    address: str
    user: str
    password: str

    @property
    def environment(self) -> dict[str, str]:
        """With which a stage finds the server, as the administrator."""
        return {
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_TRACKING_USERNAME": self.user,
            "MLFLOW_TRACKING_PASSWORD": self.password,
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # the tests share their machine with the server
        }


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs; Debian has them outside PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@contextmanager
def postgres(programs: Path) -> Iterator[dict[str, str]]:
    """A database server while the block runs. Yields the environment with which libpq finds its database."""
    # It refuses to run as root, and another user cannot enter pytest's folders.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="prefdag-postgres-"))
    password = secrets.token_hex(8)
    port = free_port()
    (folder / "password").write_text(password)
    if user:
        for path in (folder, folder / "password"):
            os.chown(path, pwd.getpwnam(user).pw_uid, -1)

    def run(name: str, *arguments: str) -> None:
        command = [str(programs / name), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    try:
        run("initdb", "--auth=scram-sha-256", f"--pwfile={folder}/password", "--username=mlflow", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", options)
        try:
            yield {
                "PGHOST": "127.0.0.1",
                "PGPORT": str(port),
                "PGUSER": "mlflow",
                "PGPASSWORD": password,
                "PGDATABASE": "postgres",
            }
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate")
    finally:
        shutil.rmtree(folder)


def read_compose() -> Any:
    return YAML(typ="safe").load(ROOT / "compose.yaml")


def make_buckets(environment: Mapping[str, str]) -> None:
    """Make the buckets on an S3 server, as compose.yaml does."""
    _, *arguments = read_compose()["services"]["buckets"]["command"]
    subprocess.run([sys.executable, *arguments], env=os.environ | environment, check=True)


@contextmanager
def mlflow(folder: Path, environment: Mapping[str, str]) -> Iterator[Mlflow]:
    """MLflow with the command and users of compose.yaml while the block runs. `environment` names its database and storage."""
    compose = read_compose()
    users = folder / "mlflow_auth.ini"
    users.write_text(compose["configs"]["auth"]["content"])
    server = Mlflow(f"http://127.0.0.1:{free_port()}", "admin", secrets.token_hex(12))
    own = {
        "MLFLOW_AUTH_CONFIG_PATH": str(users),
        "MLFLOW_AUTH_ADMIN_USERNAME": server.user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": server.password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    program, *arguments = compose["services"]["mlflow"]["command"]
    here = ["--host=127.0.0.1", f"--port={server.address.rpartition(':')[2]}", "--workers=1"]
    log = folder / "mlflow.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", program, *arguments, *here],
            env=os.environ | environment | own,
            cwd=folder,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            wait_for(lambda: answers(f"{server.address}/health", process, log))
            asked = {"url": f"{server.address}/api/2.0/mlflow/experiments/search", "json": {"max_results": 1}}
            requests.post(**asked, auth=(server.user, server.password), timeout=LONGEST).raise_for_status()
            yield server
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def answers(address: str, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-4000:]
    try:
        return requests.get(address, timeout=5).ok
    except requests.ConnectionError:
        return False


def wait_for(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + LONGEST
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.2)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
