"""Delays Ctrl-C and SIGTERM until a block that must not be interrupted has ended."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; nothing is left half done."""


@contextmanager
def interruptible() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Within the block, either signal raises `Interrupted`: immediately, or at the end of a `whole` block.

        with interruptible() as whole:
            with whole():
                ...  # an optimiser step, say

    A second signal does not wait: it raises `SystemExit` even inside a `whole` block. Outside the main thread, the only one
    that receives signals, this does nothing.
    """
    held: list[int] | None = None  # signals received in a `whole` block

    def receive(number: int, frame: FrameType | None) -> None:
        if held is None:
            raise Interrupted(signal.Signals(number).name)
        if held:
            raise SystemExit(128 + number)
        held.append(number)

    @contextmanager
    def whole() -> Iterator[None]:
        nonlocal held
        held = []
        try:
            yield
        finally:
            received, held = held, None
        if received:
            raise Interrupted(signal.Signals(received[0]).name)

    with received_by(receive):
        yield whole


@contextmanager
def interruptible_together(any_rank: Callable[[bool], bool]) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """The same for one of several processes: all of them stop at the end of the same `whole` block.

    Signals between blocks, and repeated ones, wait for that too. A launcher repeats signals, and in the end kills.

    Args:
        any_rank: whether any process has received a signal, given whether this one has. All processes call it together.
    """
    received: list[int] = []

    @contextmanager
    def whole() -> Iterator[None]:
        yield
        if any_rank(bool(received)):
            raise Interrupted("on one of the processes")

    with received_by(lambda number, frame: received.append(number)):
        yield whole


@contextmanager
def received_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let `handler` receive the signals while the block runs, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
