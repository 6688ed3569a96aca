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

    if threading.current_thread() is not threading.main_thread():
        yield whole
        return
    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield whole
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
