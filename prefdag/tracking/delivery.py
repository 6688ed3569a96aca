"""Delivers a spool on disk to the MLflow store from a thread, exactly once, without holding a stage up.

Requests are idempotent (see `store.py`), so every event that was not acknowledged can be sent again.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from prefdag.lifecycle.background import in_background
from prefdag.tracking.spool import Delivered, Event, Spool
from prefdag.tracking.store import LIMITS, DeliveryError, OutageError, Store, one_line

T = TypeVar("T")

log = logging.getLogger(__name__)

INTERVAL = 3.0  # seconds between two deliveries
PATIENCE = 8.0  # seconds that a finished stage waits for one answer
LONGEST = 120.0  # seconds that it waits for all of them


@contextmanager
def sending(spool: Spool) -> Iterator[None]:
    """Send a spool from a thread while the block runs, and the rest of it at the end.

    Deletes the spool if the run has FINISHED and everything arrived, otherwise releases it. Raises nothing: unsent events
    stay in the spool, and one warning says so.
    """
    store = Store()
    reason = None
    if not store.known_dead():
        # Not beside the block: two threads that import the same packages can see them half-initialised.
        try:
            clocked(store.import_mlflow, store, LONGEST)
        except OutageError as error:
            reason = str(error)
    ended = threading.Event()
    sent = in_background(partial(_send_until, ended, spool, store, reason), "prefdag-delivery")
    try:
        yield
    finally:
        ended.set()
        if late := _wait(sent, store, LONGEST):
            _warn(spool, store, late)
        # A thread that is still waiting is a daemon and ends with the process. The spool records what was delivered.


def clocked(work: Callable[[], T], store: Store, longest: float) -> T:
    """The result of `work`, which uses the store from a thread of its own.

    Raises:
        OutageError: there was no answer in time, or `longest` seconds have passed. The thread may still wait for something,
            but asks the store nothing more.
        Exception: what `work` raises.
    """
    future = in_background(work, "prefdag-request")
    if late := _wait(future, store, longest):
        raise OutageError(late)
    return future.result()


def _wait(work: "Future[Any]", store: Store, longest: float) -> str | None:
    """Wait for work that uses the store. Returns why it is given up, None if it is done.

    Covers whatever hangs: names, connections, locks, SQL, imports and files.
    """
    end = time.monotonic() + longest
    while not work.done():
        limit = store.overdue(PATIENCE)
        if limit is not None or time.monotonic() > end:
            store.given_up = True
            store.note_dead()
            return f"no answer in {limit:.0f} s" if limit is not None else f"not finished after {longest:.0f} s"
        wait([work], 0.02)
    return None


def _send_until(ended: threading.Event, spool: Spool, store: Store, reason: str | None) -> None:
    try:
        if reason:
            raise OutageError(reason)
        if store.known_dead():
            raise OutageError("no answer a few minutes ago")
        last = False
        while not last:
            last = ended.is_set()
            deliver(spool, store)
            if not last:
                ended.wait(INTERVAL)
        if spool.status == "FINISHED":
            spool.delete()
    except Exception as error:  # also a damaged spool or a full disk: the stage goes on
        if not store.given_up:
            _warn(spool, store, str(error) if isinstance(error, DeliveryError) else one_line(error))
    finally:
        ended.wait()  # a live run keeps its spool, even when nothing more is sent
        spool.release()


def _warn(spool: Spool, store: Store, reason: str) -> None:
    log.warning("MLflow at %s: %s; the run is kept in %s; `prefdag sync` sends it", store.name, reason, spool.folder)


def deliver(spool: Spool, store: Store) -> None:
    """Send all events that the store has not acknowledged.

    Raises:
        DeliveryError: the store did not accept a batch. Earlier batches stay acknowledged.
    """
    store.import_mlflow()  # with our defaults, before anything else imports it
    delivered = spool.delivered
    if delivered is None or delivered.store != store.name:
        delivered = Delivered(store.name, "", 0)
    spool.name_metrics(delivered.offset)
    for batch, end in _batches(spool.events(delivered.offset)):
        delivered = Delivered(store.name, _send(batch, spool, store, delivered.run_id), end)
        spool.acknowledge(delivered)


def _batches(events: Iterable[tuple[Event, int]]) -> Iterator[tuple[list[Event], int]]:
    """Batches with the byte offset of their end: consecutive steps up to about one request, every other event alone."""
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


def _send(batch: list[Event], spool: Spool, store: Store, run_id: str) -> str:
    """Send several steps, or one other event. Returns the run's id, which the start event creates."""
    event = batch[0]
    match event["kind"]:
        case "start":
            return store.begin(event)
        case "step":
            store.log_steps(run_id, batch, spool.names)
        case "file":
            path = Path(event["path"])
            store.ask(lambda c: c.log_artifact(run_id, str(spool.copy_of(path)), path.parent.as_posix()))
        case "status" if event["status"] == "RUNNING":
            store.ask(lambda c: c.update_run(run_id, status="RUNNING"))
        case "status":
            store.ask(lambda c: c.set_terminated(run_id, event["status"], event["time"]))
    return run_id
