"""The stage that runs in this process: its name, and the parameters its `main` was called with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from prefdag.runtime.yaml import flatten


@dataclass(frozen=True)
class Running:
    """The current stage. Checkpoint keys and MLflow runs are made from it."""

    name: str
    sections: Mapping[str, Any]  # the keys of params.yaml that `main` takes

    @property
    def params(self) -> dict[str, Any]:
        """The sections, flattened to dotted keys."""
        return flatten(self.sections)


_RUNNING: ContextVar[Running] = ContextVar("running")


@contextmanager
def running(name: str, sections: Mapping[str, Any]) -> Iterator[None]:
    """Set the current stage while the block runs."""
    token = _RUNNING.set(Running(name, sections))
    try:
        yield
    finally:
        _RUNNING.reset(token)


def running_stage() -> Running:
    """The current stage. Raises `LookupError` outside a stage."""
    return _RUNNING.get()
