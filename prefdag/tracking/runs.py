"""Runs in MLflow: training stages live (`stage_run`), the whole pipeline (`pipeline_run`), unsent runs later (`sync`).

Every event is first written to a spool on disk (`spool.py`), and a thread sends the spool to MLflow (`delivery.py`).
Tracking therefore costs training one small write per step. If the server is away, the stage prints a warning and the spool
waits for `prefdag sync`.

A stage that was killed, failed or interrupted keeps its spool. When it runs again with the same key, it continues the same
MLflow run. Metrics that the run already has are not logged twice: a resumed training repeats them bit by bit. `prefdag sync`
in between closes that run for good, and the stage then opens a new one.
"""

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdag.lifecycle.errors import PrefdagError
from prefdag.lifecycle.launcher import rank
from prefdag.runtime.artifacts import stage_key
from prefdag.runtime.yaml import flatten
from prefdag.tracking import keys
from prefdag.tracking import spool as spools
from prefdag.tracking.delivery import clocked, deliver, log, sending
from prefdag.tracking.store import CredentialsError, DeliveryError, OutageError, Store, one_line
from prefdag.tracking.trackers import Trackers, requested, trackers

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from prefdag.tracking.spool import Event, Spool

LONGEST = 1800.0  # seconds for one run of `sync`, or for the list of all runs, if the store keeps answering
GIT = 30.0  # seconds for a git command


@dataclass(frozen=True)
class SyncResult:
    """How many runs `sync` completed in MLflow, and how many are still waiting."""

    sent: int
    left: int


@dataclass(frozen=True)
class RunLogger:
    """Logs a run's metrics and files. Without a spool it logs nothing: only the first of several processes has one."""

    spool: "Spool | None"
    trackers: Trackers = field(default_factory=Trackers)
    known: frozenset[tuple[int, str]] = frozenset()  # (step, metric) logged before the stage was resumed

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step. Returns at once; they are sent within seconds."""
        new = {key: float(value) for key, value in metrics.items() if (step, key) not in self.known}
        if self.spool and new:
            self.spool.append({"kind": "step", "time": _now(), "step": step, "metrics": new})
            self.trackers.log(step, new)

    def file(self, path: Path) -> None:
        """Log a file, in its current state, as an artifact of the same path. `path` is relative to the repository root."""
        if self.spool:
            copy = self.spool.copy_of(path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            self.spool.append({"kind": "file", "time": _now(), "path": path.as_posix()})


@contextmanager
def stage_run(stage: str, params: Mapping[str, Any], key: str | None = None) -> Iterator[RunLogger]:
    """A live run, tagged kind=stage, while the block runs.

    Args:
        params: the sections of params.yaml that the stage's `main` takes.
        key: the stage's checkpoint key. None computes it here, from `params` and the bytes of every input.
    """
    if rank() > 0:
        yield RunLogger(None)
        return
    flat = flatten(params)
    key = key or stage_key(stage, flat)
    tags = {"kind": "stage", "prefdag.runtime.stage": stage, "prefdag.key": key}
    with _reporting(f"{stage}-{key}", _start(f"{stage} {_experiment()}", stage, tags, flat)) as run:
        yield run


@contextmanager
def pipeline_run(
    parameters: Mapping[str, Any], seconds: float = 0.0, experiment_tags: Mapping[str, str] | None = None
) -> Iterator[RunLogger]:
    """A run of the whole pipeline, tagged kind=pipeline, with all parameters. Its name gives beta and the experiment.

    Args:
        parameters: by dotted key.
        seconds: how long the pipeline took; the run starts so long ago.
        experiment_tags: set on MLflow's experiment.
    """
    start = _start(f"beta={parameters['beta']} {_experiment()}", "publish", {"kind": "pipeline"}, parameters)
    start |= {"time": start["time"] - round(1000 * seconds), "experiment_tags": dict(experiment_tags or {})}
    with _reporting(f"pipeline-{uuid.uuid4().hex[:8]}", start) as run:
        yield run


def sync() -> SyncResult:
    """Send every spool that no living process holds. Runs of killed processes are closed as KILLED."""
    store = Store()
    sent = left = 0
    dead = False
    for folder in spools.folders():
        spool = spools.claim(folder)
        if spool is None:
            continue
        try:
            if spool.status is None:  # killed before its first event was complete
                spool.delete()
                continue
            if spool.status == "RUNNING":
                spool.append(_status("KILLED"))
            if dead:
                left += 1
                continue
            incomplete = not spool.all_sent_to(store.name)
            clocked(partial(deliver, spool, store), store, LONGEST)
            spool.delete()
            sent += incomplete
        except Exception as error:  # also a damaged spool: the others are sent
            reason = str(error) if isinstance(error, DeliveryError) else one_line(error)
            log.warning("MLflow at %s: %s; the run is kept in %s", store.name, reason, folder)
            dead = isinstance(error, OutageError | CredentialsError)
            left += 1
        finally:
            spool.release()
    if not dead:
        store.note_alive()
    return SyncResult(sent, left)


def pipelines() -> list[tuple[str, dict[str, str], dict[str, float]]]:
    """Name, parameters and metrics of every finished run tagged kind=pipeline, in the order in which they were published.

    Raises:
        PrefdagError: MLflow does not answer, or refuses.
    """
    store = Store()
    try:
        runs = [] if store.known_dead() else clocked(lambda: store.ask(_finished), store, LONGEST)
    except DeliveryError as error:
        remedy = "; try again when it answers" if isinstance(error, OutageError) else ""
        raise PrefdagError(f"MLflow at {store.name}: {error}{remedy}") from None
    return [(run.info.run_name, run.data.params, run.data.metrics) for run in runs]


def _finished(client: "MlflowClient") -> list[Any]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    finished = "tags.kind = 'pipeline' and attributes.status = 'FINISHED'"
    return list(client.search_runs(experiments, finished, max_results=1000, order_by=["attributes.end_time ASC"]))


@contextmanager
def _reporting(name: str, start: "Event") -> Iterator[RunLogger]:
    """Start or continue the run in the spool of this name, and send it while the block runs."""
    others = requested()
    spool = spools.claim_any(name)
    known: frozenset[tuple[int, str]] = frozenset()
    if spool.status is None:
        spool.append(start)
    else:
        steps = (event for event, _ in spool.events() if event["kind"] == "step")
        known = frozenset((event["step"], metric) for event in steps for metric in event["metrics"])
        spool.append(_status("RUNNING"))
    first, _ = next(spool.events())
    with sending(spool), trackers(others, first) as opened:
        try:
            yield RunLogger(spool, opened, known)
        except KeyboardInterrupt:
            spool.append(_status("KILLED"))
            raise
        except BaseException:
            spool.append(_status("FAILED"))
            raise
        spool.append(_status("FINISHED"))


def _start(name: str, stage: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> "Event":
    """The first event of a spool, with everything that MLflow needs to create the run."""
    return {
        "kind": "start",
        "time": _now(),
        "name": name,
        "tags": {
            **tags,
            **revision(),
            "mlflow.source.name": f"stages/{stage}.py",
            "mlflow.source.type": "LOCAL",
            "prefdag.spool": uuid.uuid4().hex,
        },
        "params": keys.parameters(params),
    }


def revision() -> dict[str, str]:
    """MLflow tags that link a run to its DVC experiment and Git revision. Unknown ones are left out."""
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git("rev-parse", "HEAD")
    # DVC rewrites these while it runs; they say nothing about the source.
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!reports")
    tags = {
        "dvc.exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "dvc.exp_baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "mlflow.source.git.commit": commit,
        "prefdag.git_dirty": str(bool(changed)).lower() if commit else "",
    }
    return {key: value for key, value in tags.items() if value}


def _status(status: str) -> "Event":
    return {"kind": "status", "time": _now(), "status": status}


def _now() -> int:
    return time.time_ns() // 1_000_000


def _experiment() -> str:
    """The name of the current experiment in `dvc exp show`."""
    return os.environ.get("DVC_EXP_NAME") or f"workspace {_git('rev-parse', '--short', 'HEAD')}".strip()


def _git(*arguments: str) -> str:
    """The output of a git command; empty if there is no repository, no commit or no git."""
    try:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=GIT
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
