"""Other trackers beside MLflow: TensorBoard and Weights & Biases, through accelerate's trackers.

    PREFDAG_REPORT_TO=tensorboard,wandb dvc repro

This is an environment variable and no parameter: where a run is reported to changes no output, so it must not rerun a stage.
A tracker that fails or hangs is dropped with one warning; training goes on.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from prefdag.lifecycle.background import in_background
from prefdag.lifecycle.errors import ParamsError
from prefdag.lifecycle.secrets import without_secrets
from prefdag.runtime.artifacts import scratch

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from prefdag.tracking.spool import Event

T = TypeVar("T")

log = logging.getLogger(__name__)

VARIABLE = "PREFDAG_REPORT_TO"
KNOWN = ("tensorboard", "wandb")
ALWAYS = "mlflow"  # may be named, but is on anyway
LONGEST = 120.0  # seconds for one call of a tracker; W&B itself gives up its start after 90
LOGS = "tensorboard"  # the folder in .prefdag, for `tensorboard --logdir`


@dataclass(frozen=True)
class Trackers:
    """The trackers of a run that still work, by name."""

    opened: dict[str, "GeneralTracker"] = field(default_factory=dict)

    def add(self, name: str, start: "Event") -> None:
        """Start a tracker, or warn in one line that it cannot be."""
        try:
            tracker = _in_time(partial(_tracker, name, start["name"], start["tags"]["prefdag.spool"]))
        except Exception as error:
            _warn(name, error)
            return
        if tracker is None:
            log.warning("%s: %s is not installed; `pip install %s` adds it", VARIABLE, name, name)
            return
        self.opened[name] = tracker
        self.each(lambda tracker: tracker.start(), name)
        self.each(lambda tracker: tracker.store_init_configuration(_plain(start["params"])), name)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        self.each(lambda tracker: tracker.log(dict(metrics), step=step))

    def each(self, use: Callable[["GeneralTracker"], None], only: str | None = None) -> None:
        """Call `use` with every tracker, or with one, and drop those that fail."""
        for name, tracker in list(self.opened.items()):
            if only in (None, name):
                try:
                    _in_time(partial(use, tracker))
                except Exception as error:  # whatever it is, training goes on
                    del self.opened[name]
                    _warn(name, error)


def requested() -> list[str]:
    """The trackers that `PREFDAG_REPORT_TO` names, separated by commas, without MLflow.

    Raises:
        ParamsError: a name is unknown.
    """
    parts = os.environ.get(VARIABLE, "").lower().split(",")
    names = list(dict.fromkeys(name for part in parts if (name := part.strip())))
    for name in names:
        if name not in (*KNOWN, ALWAYS):
            raise ParamsError(f"{VARIABLE}: {name!r} is unknown; choose from {', '.join(KNOWN)} (MLflow is always on)")
    return [name for name in names if name != ALWAYS]


@contextmanager
def trackers(names: Iterable[str], start: "Event") -> Iterator[Trackers]:
    """The trackers of these names for the run that began with the event `start`. They end with the block.

    A stage that is resumed has the same event, and so continues its run.
    """
    opened = Trackers()
    for name in names:
        opened.add(name, start)
    try:
        yield opened
    finally:
        opened.each(lambda tracker: tracker.finish())


def _in_time(call: Callable[[], T]) -> T:
    """The result of `call`. Raises `TimeoutError` after `LONGEST`; the call may then go on in its thread."""
    work = in_background(call, "prefdag-tracker")
    try:
        return work.result(timeout=LONGEST)
    except TimeoutError:
        if work.done():  # the tracker itself raised it
            raise
        raise TimeoutError(f"no answer in {LONGEST:g} s") from None


def _tracker(name: str, run: str, key: str) -> "GeneralTracker | None":
    """The tracker of this name, not yet started; None if its package is not installed."""
    from accelerate.tracking import TensorBoardTracker, WandBTracker
    from accelerate.utils import is_tensorboard_available, is_wandb_available

    from prefdag.distributed.process import process

    process()  # before anything else of accelerate; see there
    if name == "tensorboard":
        return TensorBoardTracker(f"{run} {key[:8]}", scratch(LOGS)) if is_tensorboard_available() else None
    if not is_wandb_available():
        return None
    scratch().mkdir(parents=True, exist_ok=True)
    project = os.environ.get("WANDB_PROJECT") or "prefdag"
    return WandBTracker(project, name=run, id=key, resume="allow", dir=str(scratch()))


def _plain(params: Mapping[str, str]) -> dict[str, bool | int | float | str]:
    """Parameters with numbers as numbers, so that a tracker can sort and plot by them."""

    def value(text: str) -> bool | int | float | str:
        try:
            parsed = json.loads(text)
        except ValueError:
            return text
        return parsed if isinstance(parsed, bool | int | float) else text

    return {key: value(text) for key, text in params.items()}


def _warn(name: str, error: Exception) -> None:
    reason = " ".join(without_secrets(str(error)).split())[:200]
    log.warning("%s: %s: %s; the run goes on without it", name, type(error).__name__, reason)
