"""Applies a function on several cores, in processes: threads would run its Python one at a time."""

import gc
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from prefdag.lifecycle.errors import PrefdagError

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

logger = logging.getLogger(__name__)

A = TypeVar("A")
B = TypeVar("B")

PROCESSES = 4  # at most: the caller keeps up with about as many
AHEAD = 20  # results that wait for the caller, or are being made


def apply_each(function: Callable[[A], B], items: Iterable[A], total: int) -> Iterator[B]:
    """The function of each item, in order. Several processes work on the next items while the caller has one.

    This process does it if there is one core or one item, or if the system gives no other processes.

    Args:
        function: it may be a closure; its result must be one that pickle takes.
        items: each should take a process more than a few milliseconds.
        total: items, or about as many.

    Raises:
        PrefdagError: the system killed a process.
        Exception: what the function raises for the first item for which it does.
    """
    processes = min(cores(), PROCESSES, total)
    pool = None if processes < 2 else _pool(function, processes)
    if pool is None:
        yield from map(function, items)
        return
    from concurrent.futures.process import BrokenProcessPool

    rest = iter(items)
    try:
        waiting = deque(pool.submit(_apply, item) for item in islice(rest, AHEAD))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_apply, item) for item in islice(rest, 1))
    except BrokenProcessPool:
        raise PrefdagError(
            "one of several processes was killed, perhaps for lack of memory; OMP_NUM_THREADS=1 takes a single one"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """The cores that this process may use: OMP_NUM_THREADS if it is set, as for torch. One where processes cannot fork."""
    if not hasattr(os, "sched_getaffinity"):
        return 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdigit() else len(os.sched_getaffinity(0))


def _pool(function: Callable[[Any], Any], processes: int) -> "ProcessPoolExecutor | None":
    """Processes that have started. None if the system gives none, or no shared memory, as in some containers."""
    from concurrent.futures import ProcessPoolExecutor  # this import takes 0.03 s
    from multiprocessing import get_context

    try:
        # A fork has the function, and all that it needs, from the start.
        pool = ProcessPoolExecutor(processes, get_context("fork"), _start, (function,))
        pool.submit(int).result()
    except (OSError, NotImplementedError) as error:
        logger.warning("one process instead of %d: %s", processes, error)
        return None
    return pool


def _start(function: Callable[[Any], Any]) -> None:
    """In a new process: leave Ctrl-C to the parent, and end when it ends, however it does."""
    from multiprocessing import parent_process

    def follow() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    global _function
    _function = function
    gc.freeze()  # a collection would write to all memory that is shared with the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=follow, daemon=True).start()


_function: Callable[[Any], Any]


def _apply(item: Any) -> Any:
    return _function(item)
