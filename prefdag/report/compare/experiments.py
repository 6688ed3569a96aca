"""A finished run of the pipeline in DVC: an experiment, a Git revision, or the workspace.

Files are read from the revision and from DVC's cache. Nothing is checked out, and the workspace does not change.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import md5
from io import BytesIO
from typing import Any

import pandas as pd

from prefdag.lifecycle.errors import DataError
from prefdag.lifecycle.exits import as_stages_write
from prefdag.report.page.results import CSV, Histories
from prefdag.runtime.dvc_files import FOLDERS, parse_lock
from prefdag.runtime.yaml import flatten, parse_mapping

WORKSPACE = "workspace"
EVALS = "data/raw/evals"
HELDOUT_SPLIT = "data/pairs/test.parquet"
IMAGES = "data/validated/images"
TEXT_METRICS, IMAGE_METRICS = "reports/text/metrics.json", "reports/image/metrics.json"
PAIRS, ROWS, CHOICES = "reports/text/pairs.csv", "reports/text/rows.parquet", "reports/text/choices.parquet"
PREDICTIONS = "reports/image/predictions.csv"
POLICY, DPO_TEXT, DPO_IMAGE = "models/policy", "models/dpo_text", "models/dpo_image"


@dataclass(frozen=True)
class Files:
    """The files of a revision, by path from the repository root; `name` is the user's name for the revision.

    `hashes` are the hashes in dvc.lock. A file is checked against its hash, but not if DVC tracks its folder as a whole.
    """

    name: str
    system: Any  # DVCFileSystem
    hashes: Mapping[str, str] = field(default_factory=dict)

    def read(self, path: str) -> bytes:
        """The content of a file. Raises `DataError` if it is in neither Git nor DVC's cache, or differs from dvc.lock."""
        from dvc.exceptions import DvcException

        try:
            with self.system.open(path, "rb") as stream:
                content = bytes(stream.read())
        except (OSError, DvcException):
            remedy = "" if self.name == WORKSPACE else "`dvc fetch --all-commits` gets it from a remote, "
            raise DataError(
                f"{self.name}: {path}: not in Git or in DVC's cache; {remedy}`dvc repro` makes it"
            ) from None
        if self.hashes.get(path, digest := md5(content, usedforsecurity=False).hexdigest()) != digest:
            raise DataError(
                f"{self.name}: {path}: differs from dvc.lock; `dvc checkout` restores it, `dvc repro` makes it"
            )
        return content

    def text(self, path: str) -> str:
        """The text of a file. Raises `DataError`."""
        return self.read(path).decode("utf-8", "replace")

    def json(self, path: str) -> Any:
        """A JSON file. Raises `DataError`."""
        with as_stages_write(f"{self.name}: {path}"):
            return json.loads(self.read(path))

    def csv(self, path: str) -> pd.DataFrame:
        """A table with a header. Raises `DataError`."""
        with as_stages_write(f"{self.name}: {path}"):
            return pd.read_csv(BytesIO(self.read(path)), **CSV)

    def parquet(self, path: str, columns: list[str] | None = None) -> pd.DataFrame:
        """A table. Raises `DataError`."""
        with as_stages_write(f"{self.name}: {path}"):
            return pd.read_parquet(BytesIO(self.read(path)), columns=columns)


@dataclass(frozen=True)
class Experiment:
    """The results of a run, and its parameters and outputs.

    `params` are flat. `outputs` has the hash of every output of a stage, by path. `metrics` has the content of both
    metrics.json files as "text" and "image". `pairs`, `rows`, `choices` and `predictions` have the columns that the
    evaluations write; `pairs` also has `preference`, the probability that the chosen response is preferred.
    """

    name: str
    params: Mapping[str, Any]
    outputs: Mapping[str, str]
    metrics: Mapping[str, Any]
    pairs: pd.DataFrame
    rows: pd.DataFrame
    choices: pd.DataFrame
    predictions: pd.DataFrame
    text: Histories
    image: Histories
    files: Files

    @property
    def revision(self) -> str:
        """The commit; empty for the workspace."""
        return "" if self.name == WORKSPACE else str(self.files.system.repo.get_rev())


def read(name: str) -> Experiment:
    """The experiment, commit, tag or branch called `name`, or "workspace".

    Raises:
        DataError: the name is unknown, the run is not finished, or an output is in neither Git nor the cache.
    """
    files = Files(name, _system(name))
    locks = ["dvc.lock", *(str(path).lstrip("/") for path in sorted(files.system.glob(f"/{FOLDERS}/dvc.lock")))]
    lock = {stage: entry for path in locks for stage, entry in parse_lock(files.text(path), _where(name, path)).items()}
    params = parse_mapping(files.text("params.yaml"), _where(name, "params.yaml"))
    check_finished(name, lock, params)
    files = replace(files, hashes=outputs(lock))
    heldout = files.parquet(HELDOUT_SPLIT, ["id", "preference"])
    return Experiment(
        name=name,
        params=flatten(params),
        outputs=files.hashes,
        metrics={"text": files.json(TEXT_METRICS), "image": files.json(IMAGE_METRICS)},
        pairs=files.csv(PAIRS).merge(heldout, on="id"),
        rows=files.parquet(ROWS),
        choices=files.parquet(CHOICES),
        predictions=files.csv(PREDICTIONS),
        text=_histories(files, POLICY if POLICY in files.hashes else DPO_TEXT),
        image=_histories(files, DPO_IMAGE),
        files=files,
    )


def _where(name: str, path: str) -> str:
    """A file of a revision, for a message."""
    return path if name == WORKSPACE else f"{name}: {path}"


def outputs(lock: Mapping[str, Any]) -> dict[str, str]:
    """The hash of every output by path, from the stages of dvc.lock."""
    return {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs") or ()}


def check_finished(name: str, lock: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Raise if the outputs do not belong together: a stage has not run since one of its inputs or parameters changed.

    Args:
        lock: the stages of dvc.lock.
        params: the content of params.yaml.

    Raises:
        DataError: names the first such stage.
    """
    hashes = outputs(lock)
    for stage, entry in lock.items():
        read = {dep["path"]: dep["md5"] for dep in entry.get("deps") or ()}
        stale = [path for path, digest in read.items() if hashes.get(path, digest) != digest]
        taken = (entry.get("params") or {}).get("params.yaml", {})
        stale += [f"params.yaml: {key}" for key, value in taken.items() if params.get(key) != value]
        if stale:
            raise DataError(f"{name}: not finished: {stage} has not run since {stale[0]} changed; run `dvc repro`")


def _system(name: str) -> Any:
    """The file system of a revision."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import NotDvcRepoError
    from dvc.scm import SCMError

    try:
        system = DVCFileSystem(rev=None if name == WORKSPACE else name)
        system.ls("/")  # looks the revision up
        return system
    except NotDvcRepoError:
        raise DataError("dvc.yaml: not found; run from the repository root") from None
    except SCMError:
        raise DataError(
            f"{name}: no experiment, commit, branch or tag of this name; `dvc exp list` shows experiments"
        ) from None


def _histories(files: Files, folder: str) -> Histories:
    """The histories that a training stage wrote next to its model."""
    return Histories(files.csv(f"{folder}/history.csv"), files.csv(f"{folder}/validation.csv"))
