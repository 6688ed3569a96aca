"""Calls that may hang, in threads of their own: waiting for one can end before it does, and so can the process."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
T = TypeVar("T")


def in_background(call: Callable[[], T], name: str | None = None) -> "Future[T]":
    """Start `call` in a daemon thread. Unlike that of an executor, it does not hold up the end of the process."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def in_parallel(
    items: Sequence[Item], call: Callable[[Item], T], threads: int, stopped: threading.Event
) -> Iterator[tuple[int, T]]:
    """The position and the result of `call` for each item, as they arrive. No call starts once `stopped` is set.

    The first exception is raised once the calls in progress have ended. Ctrl-C waits for none of them.
    """
    todo = enumerate(items)
    running: dict[Future[T], int] = {}
    try:
        while True:
            while len(running) < threads and not stopped.is_set() and (following := next(todo, None)):
                running[in_background(partial(call, following[1]))] = following[0]
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                if future.exception():
                    stopped.set()
                    wait(running)
                yield number, future.result()
    finally:
        stopped.set()
