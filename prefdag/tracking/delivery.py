"""From a spool on disk to MLflow, exactly once, and never for long.

Everything that is sent is idempotent, so whatever was not acknowledged may be sent again: a run is found by the tag
`prefdag.spool` or else created; MLflow drops a metric that it has with the same key, step, time and value; parameters,
tags, artifacts and the status are overwritten.

MLflow's SQL store turns infinity into 1.8e308, so metrics that are not finite stay away from it: the tag
`prefdag.nonfinite` names the latest of them.
"""

import logging
import math
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from prefdag.runtime.artifacts import project_root, read_json, scratch, write_json
from prefdag.tracking.spool import Event, Sent, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
T = TypeVar("T")

INTERVAL = 3.0  # seconds between two deliveries
PATIENCE = 8.0  # seconds that the end of a stage waits for one answer
QUIET = 300.0  # seconds in which no other stage asks a server that did not answer
LIMITS = {"metrics": 1000, "params": 100, "tags": 100}  # of one request, by MLflow

# Defaults for MLflow. No retries of its own, since they would also repeat the creation of a run: `Store` asks twice, so
# that a server which accepts connections and never answers is given up after 6 s.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what goes wrong is said here, in one line
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the address may hold a password
}


class DeliveryError(Exception):
    """MLflow did not take something. The message is one line without secrets."""


class OutageError(DeliveryError):
    """No answer, or none of MLflow's: it makes no sense to go on."""


class RefusalError(DeliveryError):
    """MLflow answered, and does not want this: a run that was deleted by hand, say."""


@contextmanager
def sending(spool: Spool) -> Iterator[None]:
    """Send a spool from a thread while the block lasts, and what is left of it at the end.

    Then gives the spool back, or deletes it when the run has FINISHED and all of it arrived. Raises nothing: what could
    not be sent stays in the spool, and one line says so.
    """
    store = Store()
    if not store.known_dead():
        import_mlflow()  # here, not in the thread: two threads that import the same packages can see them half-made
    ended = threading.Event()
    thread = threading.Thread(target=_send_until, args=(ended, spool, store), name="prefdag-delivery", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        while thread.is_alive() and not store.given_up:
            if store.waited() > PATIENCE:
                store.given_up = True
                store.note_dead()
                _warn(spool, store, f"no answer in {PATIENCE:.0f} s")
            thread.join(0.02)
        # A thread that still waits for its answer is a daemon: it ends with the process. The spool knows what was sent.


def _send_until(ended: threading.Event, spool: Spool, store: "Store") -> None:
    try:
        if store.known_dead():
            raise OutageError("no answer some minutes ago")
        last = False
        while not last:
            last = ended.is_set()
            deliver(spool, store)
            if not last:
                ended.wait(INTERVAL)
        if spool.status == "FINISHED":
            spool.delete()
    except DeliveryError as error:
        if not store.given_up:
            _warn(spool, store, str(error))
    finally:
        ended.wait()  # a live run keeps its spool, also where nothing is sent any more
        spool.release()


def _warn(spool: Spool, store: "Store", reason: str) -> None:
    log.warning("MLflow at %s: %s; the run is kept in %s; `prefdag sync` sends it", store.name, reason, spool.folder)


def deliver(spool: Spool, store: "Store") -> None:
    """Send all events that the store has not acknowledged. Raises `DeliveryError`; what arrived before it counts."""
    sent = spool.sent
    if sent is None or sent.store != store.name:
        sent = Sent(store.name, "", 0)
    for batch, end in _batches(spool.events(sent.offset)):
        sent = Sent(store.name, _send(batch, spool, store, sent.run_id), end)
        spool.acknowledge(sent)


def _batches(events: Iterable[tuple[Event, int]]) -> Iterator[tuple[list[Event], int]]:
    """Consecutive steps up to about a request full of metrics, every other event alone; with the offset of their end."""
    batch: list[Event] = []
    size = end = 0
    for event, after in events:
        if batch and (event["kind"] != "step" or batch[0]["kind"] != "step" or size >= LIMITS["metrics"]):
            yield batch, end
            batch, size = [], 0
        batch.append(event)
        size += len(event.get("metrics", ()))
        end = after
    if batch:
        yield batch, end


def _send(batch: list[Event], spool: Spool, store: "Store", run_id: str) -> str:
    """Send steps, or one other event, to the run. Returns its id, which the first event, the start, brings forth."""
    event = batch[0]
    match event["kind"]:
        case "start":
            return store.begin(event)
        case "step":
            store.log_steps(run_id, batch)
        case "file":
            path = Path(event["path"])
            store.ask(lambda c: c.log_artifact(run_id, str(spool.copy_of(path)), path.parent.as_posix()))
        case "status" if event["status"] == "RUNNING":
            store.ask(lambda c: c.update_run(run_id, status="RUNNING"))
        case "status":
            store.ask(lambda c: c.set_terminated(run_id, event["status"], event["time"]))
    return run_id


class Store:
    """The MLflow store, asked one question at a time. It connects with the first one.

    Raises:
        DeliveryError: of every question; MLflow's own exceptions stay inside.
    """

    def __init__(self) -> None:
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root()}/mlflow.db"
        self.name = without_secrets(self.uri)
        self.remote = self.uri.startswith(("http:", "https:"))
        self.given_up = False  # by the end of a stage, which waits no longer
        self._asked: float | None = None  # when the question under way was put, in monotonic seconds
        self._client: MlflowClient | None = None

    def waited(self) -> float:
        """Seconds since the question under way was put; 0 where there is none. Opening our database is no question."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    def ask(self, question: Callable[["MlflowClient"], T]) -> T:
        """The answer; a question that fails is put once more."""
        client = self._client = self._client or self._connect()
        return self._twice(lambda: question(client))

    def begin(self, start: Event) -> str:
        """The id of the run of a spool, found or created, with its parameters."""
        from mlflow.entities import Param

        experiment = self._experiment()
        mine = f"tags.`prefdag.spool` = '{start['tags']['prefdag.spool']}'"

        def find_or_create(client: "MlflowClient") -> str:
            if found := client.search_runs([experiment], mine, max_results=1):
                return str(found[0].info.run_id)
            return str(client.create_run(experiment, start["time"], start["tags"], start["name"]).info.run_id)

        run_id = self.ask(find_or_create)
        self._log(run_id, "params", [Param(key, value) for key, value in start["params"].items()])
        return run_id

    def log_steps(self, run_id: str, steps: Iterable[Event]) -> None:
        """The metrics of some steps."""
        from mlflow.entities import Metric, RunTag

        metrics: list[Any] = []
        tags: list[Any] = []
        for event in steps:
            for key, value in event["metrics"].items():
                if math.isfinite(value):
                    metrics.append(Metric(key, value, event["time"], event["step"]))
                else:
                    tags = [RunTag("prefdag.nonfinite", f"{key} is {value} at step {event['step']}")]
        self._log(run_id, "metrics", metrics)
        self._log(run_id, "tags", tags)

    def _log(self, run_id: str, kind: str, items: list[Any]) -> None:
        for i in range(0, len(items), LIMITS[kind]):
            self.ask(methodcaller("log_batch", run_id, **{kind: items[i : i + LIMITS[kind]]}))

    def _experiment(self) -> str:
        """The id of the experiment, created if need be."""
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "prefdag"
        # Without a place of our own, artifacts go to the current directory: a temporary one in a queued experiment.
        place = None if self.remote else (project_root() / "mlartifacts").as_uri()

        def find_or_create(client: "MlflowClient") -> str:
            if found := client.get_experiment_by_name(name):
                return str(found.experiment_id)
            try:
                return client.create_experiment(name, place)
            except MlflowException:
                if found := client.get_experiment_by_name(name):  # another process was faster
                    return str(found.experiment_id)
                raise

        return self.ask(find_or_create)

    def _connect(self) -> "MlflowClient":
        """The client, and the database where there is none: seconds, under a lock, since two at it break each other."""
        mlflow = import_mlflow()
        if self.remote:
            return self._twice(lambda: mlflow.MlflowClient(self.uri))
        scratch().mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(scratch("mlflow.lock"), timeout=60):
                database = Path(self.uri.removeprefix("sqlite:///"))
                if database.exists():
                    self._twice(lambda: _wait_for_lock(database))
                return self._twice(lambda: mlflow.MlflowClient(self.uri), clocked=False)  # our own work, however slow
        except Timeout as error:
            raise OutageError("another process has been opening the database for a minute") from error

    def _twice(self, question: Callable[[], T], clocked: bool = True) -> T:
        from mlflow.exceptions import MlflowException

        self._asked = time.monotonic() if clocked else None
        try:
            try:
                return question()
            except Exception:  # whatever a driver raises, a second trial tells
                return question()
        except Exception as error:
            if isinstance(error, MlflowException) and error.get_http_status_code() < 500:
                raise RefusalError(_one_line(error)) from error
            self.note_dead()
            raise OutageError(_one_line(_root(error))) from error
        finally:
            self._asked = None

    def known_dead(self) -> bool:
        """Whether this server gave no answer a short while ago, to any stage: one pays for finding out, not all."""
        note = scratch("unanswered.json")
        return (
            self.remote
            and note.exists()
            and read_json(note) == {"store": self.name}
            and time.time() - note.stat().st_mtime < QUIET
        )

    def note_dead(self) -> None:
        if self.remote:
            write_json(scratch("unanswered.json"), {"store": self.name})

    def note_alive(self) -> None:
        """Let the next stage ask again."""
        scratch("unanswered.json").unlink(missing_ok=True)


def import_mlflow() -> Any:
    """MLflow, with our defaults for what the user's environment leaves open."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    return mlflow


def _wait_for_lock(database: Path) -> None:
    """Raises where another process holds the database: MLflow, opening it, would try for minutes."""
    with closing(sqlite3.connect(database, timeout=3)) as connection:
        connection.execute("BEGIN IMMEDIATE")


def without_secrets(text: str) -> str:
    """The text, addresses in it without `user:password@`."""
    return re.sub(r"(?<=//)[^/\s]*@", "", text)


def _root(error: BaseException) -> BaseException:
    """What it all began with: "connection refused" says more than the five exceptions around it."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _one_line(error: BaseException) -> str:
    text = " ".join(without_secrets(str(error)).split())
    return f"{type(error).__name__}: {text[:200]}"
