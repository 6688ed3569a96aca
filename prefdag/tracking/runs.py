"""Runs in MLflow: training stages live (`stage_run`), the whole pipeline (`pipeline_run`), the rest later (`sync`).

Every event goes to a spool on disk first (`spool.py`), and a thread sends what stands there (`delivery.py`). So
tracking costs training one small write a step, and a server that is gone costs a warning: the spool waits for
`prefdag sync`.

A stage that was killed, failed or interrupted leaves its spool. Run again with the same key, it goes on in the same
MLflow run; what the run has is not logged twice, since a resumed training repeats it bit by bit. `prefdag sync` in
between closes that run for good, and the stage opens another one.
"""

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdag.runtime.artifacts import stage_key
from prefdag.runtime.errors import PrefdagError
from prefdag.runtime.yaml import flatten
from prefdag.tracking import spool as spools
from prefdag.tracking.delivery import DeliveryError, OutageError, RefusalError, Store, deliver, log, sending

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from prefdag.config.params import Params
    from prefdag.tracking.spool import Event, Spool


@dataclass(frozen=True)
class SyncResult:
    """How many runs `sync` brought up to date, and how many still wait."""

    sent: int
    left: int


@dataclass(frozen=True)
class Run:
    """What a stage reports to. Without a spool (in all but the first of several processes) it keeps silent."""

    spool: "Spool | None"
    known: frozenset[tuple[int, str]] = frozenset()  # what the run had before the stage was resumed

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note metrics of a step. Returns at once; they are sent within seconds."""
        new = {key: float(value) for key, value in metrics.items() if (step, key) not in self.known}
        if self.spool and new:
            self.spool.append({"kind": "step", "time": _now(), "step": step, "metrics": new})

    def file(self, path: Path) -> None:
        """Note a file as it is now: an artifact of the same path. `path` is relative to the repository root."""
        if self.spool:
            copy = self.spool.copy_of(path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            self.spool.append({"kind": "file", "time": _now(), "path": path.as_posix()})


@contextmanager
def stage_run(stage: str, params: Mapping[str, Any], key: str | None = None) -> Iterator[Run]:
    """A live run, tagged kind=stage, for as long as the block lasts.

    Args:
        params: what the stage reads of params.yaml, as its `main` gets it.
        key: the stage's checkpoint key; None: computed here, from `params` and every input's bytes.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield Run(None)
        return
    flat = flatten(params)
    key = key or stage_key(stage, flat)
    tags = {"kind": "stage", "prefdag.stage": stage, "prefdag.key": key}
    with _reporting(f"{stage}-{key}", _start(f"{stage} {_experiment()}", stage, tags, flat)) as run:
        yield run


@contextmanager
def pipeline_run(params: "Params") -> Iterator[Run]:
    """A run of the whole pipeline, tagged kind=pipeline, with all parameters; named by beta and experiment."""
    start = _start(f"beta={params.beta} {_experiment()}", "publish", {"kind": "pipeline"}, flatten(params))
    with _reporting(f"pipeline-{uuid.uuid4().hex[:8]}", start) as run:
        yield run


def sync() -> SyncResult:
    """Send what no living process is about to send, and close the runs of killed ones as KILLED."""
    store = Store()
    sent = left = 0
    dead = False
    for folder in spools.folders():
        spool = spools.claim(folder)
        if spool is None:
            continue
        try:
            if spool.status is None:  # killed before its first event was whole
                spool.delete()
                continue
            if spool.status == "RUNNING":
                spool.append(_status("KILLED"))
            if dead:
                left += 1
                continue
            news = not spool.all_sent_to(store.name)
            deliver(spool, store)
            spool.delete()
            sent += news
        except (OutageError, RefusalError) as error:
            log.warning("MLflow at %s: %s; the run is kept in %s", store.name, error, folder)
            dead = isinstance(error, OutageError)
            left += 1
        finally:
            spool.release()
    if not dead:
        store.note_alive()
    return SyncResult(sent, left)


def pipelines() -> list[tuple[str, dict[str, str], dict[str, float]]]:
    """Name, parameters and metrics of every finished run with the tag kind=pipeline, the oldest first.

    Raises:
        PrefdagError: MLflow does not answer.
    """
    store = Store()
    try:
        runs = [] if store.known_dead() else store.ask(_finished)
    except DeliveryError as error:
        raise PrefdagError(f"MLflow at {store.name}: {error}; try again when it answers") from None
    return [(run.info.run_name, run.data.params, run.data.metrics) for run in runs]


def _finished(client: "MlflowClient") -> list[Any]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    chosen = "tags.kind = 'pipeline' and attributes.status = 'FINISHED'"
    return list(client.search_runs(experiments, chosen, max_results=1000, order_by=["attributes.start_time ASC"]))


@contextmanager
def _reporting(name: str, start: "Event") -> Iterator[Run]:
    """The run of the spool of this name, begun or continued, sent while the block lasts."""
    spool = spools.claim_any(name)
    known: frozenset[tuple[int, str]] = frozenset()
    if spool.status is None:
        spool.append(start)
    else:
        steps = (event for event, _ in spool.events() if event["kind"] == "step")
        known = frozenset((event["step"], metric) for event in steps for metric in event["metrics"])
        spool.append(_status("RUNNING"))
    with sending(spool):
        try:
            yield Run(spool, known)
        except KeyboardInterrupt:
            spool.append(_status("KILLED"))
            raise
        except BaseException:
            spool.append(_status("FAILED"))
            raise
        spool.append(_status("FINISHED"))


def _start(name: str, stage: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> "Event":
    """The first event of a spool: everything that MLflow needs to create the run."""
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
        "params": {key: value if isinstance(value, str) else json.dumps(value) for key, value in params.items()},
    }


def revision() -> dict[str, str]:
    """What joins a run to its DVC experiment and Git revision, as MLflow tags; without those that are not known."""
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git("rev-parse", "HEAD")
    # What DVC rewrites while it runs says nothing about the source.
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
    """The name by which `dvc exp show` knows what runs."""
    return os.environ.get("DVC_EXP_NAME") or f"workspace {_git('rev-parse', '--short', 'HEAD')}".strip()


def _git(*arguments: str) -> str:
    """What git prints; nothing where there is no repository, no commit or no git."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
