"""Ctrl-C and SIGTERM, which come at any time, held back until what must be whole is whole."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal came, and nothing is half done."""


@contextmanager
def interruptible() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Within the block either signal raises `Interrupted`: at once, but at the end of a block of what is yielded.

        with interruptible() as whole:
            with whole():
                ...  # an optimiser step, say

    A second signal does not wait: it raises `SystemExit`, in the middle of whatever is not whole. Outside the main thread,
    which alone hears signals, nothing changes.
    """
    held: list[int] | None = None  # the signals that came in a whole block

    def hear(number: int, frame: FrameType | None) -> None:
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
            came, held = held, None
        if came:
            raise Interrupted(signal.Signals(came[0]).name)

    if threading.current_thread() is not threading.main_thread():
        yield whole
        return
    before = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield whole
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
