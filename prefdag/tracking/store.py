"""The MLflow store: one idempotent request at a time, with a limit on how long a stage waits for it.

Every request may be repeated. A run is looked up by the tag `prefdag.spool` before it is created. MLflow drops a metric
that it already has with the same key, step, time and value. Parameters, tags, artifacts and the status are overwritten.

MLflow's SQL store turns infinity into 1.8e308. Metrics that are not finite are therefore not sent; the tag
`prefdag.nonfinite` names the latest of them.
"""

import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock, Timeout

from prefdag.lifecycle.secrets import without_secrets
from prefdag.runtime.artifacts import project_root, read_json, scratch, write_json, writing
from prefdag.tracking.keys import NAME_LENGTH, parameters

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from prefdag.tracking.spool import Event

T = TypeVar("T")

OPENING = 60.0  # seconds to import MLflow, and to create or open our own database; local work, but it can hang too
QUIET = 300.0  # seconds for which no other stage tries a server that did not answer
ARTIFACT_PATHS = (  # tables and columns of MLflow's database
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
DAMAGED = ("file is not a database", "disk image is malformed", "no such table", "no such column")  # SQLite's words
LIMITS = {"metrics": 1000, "params": 100, "tags": 100}  # per request, set by MLflow

# Defaults for MLflow. Its own retries are off, since they would also repeat the creation of a run. `Store` tries twice, so
# a server that accepts connections and never answers is given up after 6 s. Large files go through the server: only it has
# the credentials of its storage, and may be alone in reaching it.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # errors are reported here, in one line
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the address may contain a password
}


class DeliveryError(Exception):
    """MLflow did not accept a request. The message is one line without secrets."""


class OutageError(DeliveryError):
    """The server did not answer, or the answer is not MLflow's. Further requests are pointless."""


class CredentialsError(DeliveryError):
    """The server does not know who asks. Further requests are pointless until the environment is corrected."""


class RefusalError(DeliveryError):
    """MLflow answered and refused this request: the run was deleted by hand, for example."""


class Store:
    """The MLflow store. It connects at the first request and handles one request at a time.

    Raises:
        DeliveryError: from every request; MLflow's own exceptions never leave this class.
    """

    def __init__(self) -> None:
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root()}/mlflow.db"
        self.name = without_secrets(self.uri)
        self.remote = self.uri.startswith(("http:", "https:"))
        self.given_up = False  # set when nobody waits any longer; the thread that still asks then stops
        self._clock: tuple[float, float | None] | None = None  # start of what is going on, and how long it may take
        self._client: MlflowClient | None = None

    @property
    def database(self) -> Path | None:
        """The file, if the store is an SQLite database."""
        path = self.uri.removeprefix("sqlite:///").partition("?")[0]
        return Path(path) if self.uri.startswith("sqlite:///") and path not in ("", ":memory:") else None

    def overdue(self, patience: float) -> float | None:
        """The limit in seconds that what is going on has exceeded, if any: `patience`, unless it has a limit of its own."""
        if self._clock is None:
            return None
        start, limit = self._clock
        limit = patience if limit is None else limit
        return limit if time.monotonic() - start > limit else None

    @contextmanager
    def _clocked(self, limit: float | None = None) -> Iterator[None]:
        outer, self._clock = self._clock, (time.monotonic(), limit)
        try:
            yield
        finally:
            self._clock = outer

    def ask(self, request: Callable[["MlflowClient"], T]) -> T:
        """The result of a request. A request that fails is tried once more."""
        if self.given_up:
            raise OutageError("nobody waits for it any longer")
        client = self._client = self._client or self._connect()
        return self._try_twice(lambda: request(client))

    def begin(self, start: "Event") -> str:
        """Find or create the run of a spool and log its parameters. Returns the run's id."""
        from mlflow.entities import Param

        experiment = self._experiment()
        for key, value in start.get("experiment_tags", {}).items():
            self.ask(methodcaller("set_experiment_tag", experiment, key, value))
        same_spool = f"tags.`prefdag.spool` = '{start['tags']['prefdag.spool']}'"

        def find_or_create(client: "MlflowClient") -> str:
            if runs := client.search_runs([experiment], same_spool, max_results=1):
                return str(runs[0].info.run_id)
            name = start["name"][:NAME_LENGTH]
            return str(client.create_run(experiment, start["time"], start["tags"], name).info.run_id)

        run_id = self.ask(find_or_create)
        self._log(run_id, "params", [Param(key, value) for key, value in parameters(start["params"]).items()])
        return run_id

    def log_steps(self, run_id: str, steps: "Iterable[Event]", name: Callable[[str], str]) -> None:
        """Log the metrics of several steps; `name` gives the key in MLflow for each."""
        from mlflow.entities import Metric, RunTag

        metrics: list[Any] = []
        tags: list[Any] = []
        for event in steps:
            for key, value in event["metrics"].items():
                if math.isfinite(value):
                    metrics.append(Metric(name(key), value, event["time"], event["step"]))
                else:
                    tags = [RunTag("prefdag.nonfinite", f"{key} is {value} at step {event['step']}")]
        self._log(run_id, "metrics", metrics)
        self._log(run_id, "tags", tags)

    def _log(self, run_id: str, kind: str, items: list[Any]) -> None:
        for i in range(0, len(items), LIMITS[kind]):
            self.ask(methodcaller("log_batch", run_id, **{kind: items[i : i + LIMITS[kind]]}))

    def _experiment(self) -> str:
        """The id of the experiment, which is created if it does not exist."""
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "prefdag"
        # By default artifacts go to the current directory, which is a temporary one in a queued experiment.
        location = None if self.remote else (project_root() / "mlartifacts").as_uri()

        def find_or_create(client: "MlflowClient") -> str:
            if experiment := client.get_experiment_by_name(name):
                return str(experiment.experiment_id)
            try:
                return client.create_experiment(name, location)
            except MlflowException:
                if experiment := client.get_experiment_by_name(name):  # another process was faster
                    return str(experiment.experiment_id)
                raise

        return self.ask(find_or_create)

    def _connect(self) -> "MlflowClient":
        """The client. Creates the database if needed: it takes seconds, and two processes at once break it, hence the lock."""
        mlflow = self.import_mlflow()
        database = self.database
        if database is None:
            return self._try_twice(lambda: mlflow.MlflowClient(self.uri))
        if fault := _fault(database):
            raise OutageError(f"{database.name}: {fault}")
        try:
            with self._clocked(OPENING):
                scratch().mkdir(parents=True, exist_ok=True)
                with FileLock(scratch("mlflow.lock"), timeout=OPENING, thread_local=False):
                    if database.exists():
                        self._try_twice(lambda: _wait_for_lock(database))
                    else:
                        self._try_twice(lambda: _create(database), limit=OPENING)
                    client = self._try_twice(lambda: mlflow.MlflowClient(self.uri), limit=OPENING)
                    if database == project_root() / "mlflow.db":
                        self._try_twice(lambda: _keep_artifacts_beside(database))
                    return client
        except Timeout as error:
            raise OutageError(f"another process has been opening the database for {OPENING:.0f} s") from error

    def import_mlflow(self) -> Any:
        """MLflow. Raises `OutageError` if it cannot be imported."""
        try:
            with self._clocked(OPENING):
                return import_mlflow()
        except Exception as error:  # a broken installation raises anything
            raise OutageError(f"mlflow cannot be imported ({one_line(error)})") from error

    def _try_twice(self, request: Callable[[], T], limit: float | None = None) -> T:
        try:
            with self._clocked(limit):
                try:
                    return request()
                except Exception:  # drivers raise anything; the second attempt decides
                    return request()
        except Exception as error:
            status = _http_status(error)
            if status == 401:
                raise CredentialsError(_credentials_wanted(self.uri)) from error
            if status == 403:
                raise RefusalError(
                    "this user may not do that; ask the server's administrator for permission"
                ) from error
            if status < 500:
                raise RefusalError(one_line(error)) from error
            self.note_dead()
            raise OutageError(f"{one_line(_root(error))}{_remedy(error, self.name)}") from error

    def known_dead(self) -> bool:
        """Whether any stage got no answer from this server recently. Only one stage pays for finding out."""
        note = scratch("unanswered.json")
        return (
            self.remote
            and note.exists()
            and read_json(note) == {"store": self.name}
            and 0 <= time.time() - note.stat().st_mtime < QUIET  # a clock that was set back makes it negative
        )

    def note_dead(self) -> None:
        """Tell other stages that this server does not answer. A local database is always tried."""
        if self.remote:
            write_json(scratch("unanswered.json"), {"store": self.name})

    def note_alive(self) -> None:
        """Let the next stage try the server again."""
        scratch("unanswered.json").unlink(missing_ok=True)


def import_mlflow() -> Any:
    """MLflow, imported with our defaults for every variable that the user has not set."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    return mlflow


def _http_status(error: Exception) -> int:
    """The HTTP status with which MLflow answered, also about an artifact; 500 if there was no answer."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    return error.response.status_code if isinstance(error, HTTPError) and error.response is not None else 500


def _credentials_wanted(uri: str) -> str:
    """What to correct when a server does not know who asks. MLflow prefers a user to a token."""
    from mlflow.utils.credentials import get_default_host_creds

    sent = get_default_host_creds(uri)  # from the environment, or MLflow's own file in the home folder
    if sent.username and sent.password:
        return "wrong user name or password; correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if sent.token:
        return "the token is unknown or has expired; set MLFLOW_TRACKING_TOKEN to a new one"
    if urlsplit(uri).password:
        return "wrong user name or password; correct those in MLFLOW_TRACKING_URI"
    return (
        "it wants to know who asks; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    )


def _fault(database: Path) -> str | None:
    """Why this path cannot become or be a database, if so. MLflow would try for minutes."""
    if database.is_symlink() and not database.exists():
        return f"a link to {database.readlink()}, which does not exist; remove the link"
    if database.exists():
        return None if database.is_file() else "not a file; move it away"
    return None if database.absolute().parent.is_dir() else "its folder does not exist; create it"


def _create(database: Path) -> None:
    """Make a database. It gets its name when complete: MLflow never completes one that a kill or a full disk cut short."""
    import mlflow

    with writing(database) as new:
        mlflow.MlflowClient(f"sqlite:///{new}")


def _keep_artifacts_beside(database: Path) -> None:
    """Point our own database at the `mlartifacts` beside it.

    MLflow stores absolute paths. After the repository was moved or copied, artifacts would go to where it was.
    """
    here = (database.parent / "mlartifacts").as_uri()
    with closing(sqlite3.connect(database, timeout=3)) as connection, connection:
        found = connection.execute("SELECT artifact_location FROM experiments WHERE artifact_location LIKE 'file:///%'")
        for old in {location for (location,) in found} - {here}:
            folder = Path(url2pathname(urlsplit(old).path))
            # A folder without such a database beside it is one that the user chose.
            if folder.name == "mlartifacts" and (folder.with_name("mlflow.db").exists() or not folder.exists()):
                for table, column in ARTIFACT_PATHS:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR {column} LIKE ?",
                        (here, len(old) + 1, old, f"{old}/%"),
                    )


def _remedy(error: BaseException, name: str) -> str:
    """What to do about a database that MLflow cannot use as it is; empty for any other error."""
    text = str(error)
    if "out-of-date database schema" in text:
        return f"; copy the database and run `mlflow db upgrade {name}`, or move it away"
    if "already exists" in text:
        return "; a change of its schema was cut short: put a copy of it back, or move it away"
    if any(words in text for words in DAMAGED):
        return "; it is damaged: put a copy of it back, or move it away"
    return ""


def _wait_for_lock(database: Path) -> None:
    """Raise if another process holds the database for 3 s. MLflow would try to open it for minutes."""
    with closing(sqlite3.connect(database, timeout=3)) as connection:
        connection.execute("BEGIN IMMEDIATE")


def _root(error: BaseException) -> BaseException:
    """The first exception of the chain: "connection refused" says more than the five exceptions around it."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def one_line(error: BaseException) -> str:
    """The kind of an exception and its message, without secrets."""
    text = " ".join(without_secrets(str(error)).split())
    return f"{type(error).__name__}: {text[:200]}"
