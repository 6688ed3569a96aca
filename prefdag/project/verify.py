"""Checks dvc.yaml against dvc.lock, and the working tree, DVC's cache and a remote against dvc.lock, byte by byte.

DVC itself trusts names and times: it checks out, pushes and trains on a cache object with a flipped byte without any
warning. Here everything is read and hashed again.

    result = verify(remote="storage")      # its table, its differences, and what could not be checked
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefdag.lifecycle.errors import ParamsError
from prefdag.lifecycle.progress import progress
from prefdag.runtime.dvc_files import DAG, LOCK, lock_of, names, read_dag, read_lock
from prefdag.runtime.hashing import file_hash, file_hashes, folder_hash
from prefdag.runtime.yaml import read_yaml

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB

FOLDER = ".dir"  # suffix of a folder's hash, which is the hash of its file list


class LockedOutput(NamedTuple):
    """An output of a stage, as recorded in dvc.lock."""

    stage: str
    path: Path
    md5: str


@dataclass(frozen=True)
class ObjectStore:
    """Objects stored under their hashes: the cache or a remote."""

    name: str
    objects: "HashFileDB"

    def read(self, md5: str) -> Iterator[bytes]:
        """An object's content in chunks. Raises `FileNotFoundError`."""
        with self.objects.fs.open(self.objects.oid_to_path(md5), "rb") as stream:
            while chunk := stream.read(2**20):
                yield chunk

    def listed(self, md5: str) -> dict[str, str] | None:
        """The hashes of a folder's files by name; None if the list is missing or damaged."""
        with suppress(FileNotFoundError):
            content = b"".join(self.read(md5))
            if hashed([content]) == md5.removesuffix(FOLDER):
                return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}
        return None


@dataclass
class StageRow:
    """What was checked of a stage: how many outputs, dependencies and parameters are as dvc.lock says, and how many not."""

    stage: str
    lock: str = "yes"  # "no": it has no entry; "differs": another command, or other files than in dvc.yaml
    present: int = 0
    changed: int = 0
    absent: int = 0
    deps: int = 0
    deps_changed: int = 0
    params: int = 0
    params_changed: int = 0

    def cells(self) -> tuple[str, ...]:
        """Its line of the table."""
        numbers = (
            self.present,
            self.changed,
            self.absent,
            self.deps,
            self.deps_changed,
            self.params,
            self.params_changed,
        )
        return (self.stage, self.lock, *map(str, numbers))


HEAD = ("stage", "in dvc.lock", "outs ok", "changed", "absent", "deps ok", "changed", "params ok", "changed")


@dataclass
class Verification:
    """What was checked, a row for each stage; every difference; and what could not be checked, by name."""

    rows: list[StageRow] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def table(self) -> list[str]:
        """The rows as lines of text."""
        cells = [HEAD, *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
        return [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]


def differences(remote: str | None = None) -> Iterator[str]:
    """One line for every difference, as in `verify`."""
    yield from verify(remote).differences


def verify(remote: str | None = None) -> Verification:
    """Compare dvc.yaml with dvc.lock, dvc.lock with the working tree, and the cache's objects and those of `remote` with their
    names.

    An output or a cache object that is absent is no difference, since `dvc pull` or `dvc repro` brings it back; the result
    lists such outputs. A stage without an entry in dvc.lock is a difference: nothing of it can be checked. A remote must have
    every object that dvc.lock needs.

    Args:
        remote: the name of a DVC remote; None skips this check.

    Raises:
        ParamsError: dvc.yaml or dvc.lock is missing or broken, has no stages, or the remote is unknown or does not answer.
    """
    dag, lock = read_dag(), read_lock()
    if not dag and not lock:
        raise ParamsError(f"{DAG}: has no stages; nothing was checked")
    params = {path: read_yaml(Path(path)) for path in _params_files(lock) if Path(path).suffix in (".yaml", ".yml")}

    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    result = Verification()
    stale: dict[str, list[str]] = {}  # the stages by what they would read differently now
    writers = {out["path"]: (stage, out["md5"]) for stage, entry in lock.items() for out in entry.get("outs") or ()}
    with Repo() as repo:
        cache = ObjectStore("cache", repo.cache.local)
        for stage in [*dag, *(name for name in lock if name not in dag)]:
            row = StageRow(stage)
            result.rows.append(row)
            result.differences += _shape_differences(row, dag.get(stage), lock.get(stage))
            if stage in lock:
                _check_outs(row, lock[stage], cache, result)
                for problem in (
                    *_wrong_deps(row, lock[stage], writers, repo),
                    *_wrong_params(row, lock[stage], params),
                ):
                    stale.setdefault(problem, []).append(stage)
        for problem, stages in stale.items():
            shown = ", ".join(stages[:3]) + (f" and {len(stages) - 3} more" if len(stages) > 3 else "")
            result.differences.append(f"{problem} {'stage' if len(stages) == 1 else 'stages'} {shown}")
        result.differences += wrong_objects(cache, sorted(cache.objects.all()))
        if remote is not None:
            try:
                result.differences += wrong_remote(repo, remote, list(locked(lock)), cache)
            except (DvcException, OSError) as error:
                raise ParamsError(
                    f".dvc/config: remote '{remote}': {error}; `dvc remote list` lists the remotes"
                ) from None
    return result


def locked(lock: Mapping[str, Any]) -> Iterator[LockedOutput]:
    """The outputs of all stages, in the order of dvc.lock."""
    for stage, entry in lock.items():
        for out in entry.get("outs") or ():
            yield LockedOutput(stage, Path(out["path"]), out["md5"])


def _params_files(lock: Mapping[str, Any]) -> set[str]:
    return {path for entry in lock.values() for path in entry.get("params") or () if Path(path).is_file()}


def _shape_differences(
    row: StageRow, wanted: Mapping[str, Any] | None, entry: Mapping[str, Any] | None
) -> Iterator[str]:
    """Where the entries of a stage in dvc.yaml and dvc.lock do not belong together."""
    stage = row.stage
    if entry is None:
        file = lock_of(stage)
        row.lock = "no"
        yield f"{file}: has no stage {stage}, so its outputs cannot be checked; `git restore {file}` or `dvc repro` adds it"
        return
    problems = []
    if wanted is None:
        problems.append(f"{LOCK}: stage {stage} is not in {DAG}")
    else:
        if "${" not in str(wanted.get("cmd")) and wanted.get("cmd") != entry.get("cmd"):
            problems.append(f"{LOCK}: stage {stage} ran another command than {DAG} has")
        for kind, keys in (("outs", ("outs", "metrics", "plots")), ("deps", ("deps",))):
            named = {name for name in names(wanted, *keys) if "${" not in name}
            recorded = {item["path"] for item in entry.get(kind) or ()}
            different = sorted(named ^ recorded)
            if different:
                shown = ", ".join(different[:3]) + (", ..." if len(different) > 3 else "")
                what = "outputs" if kind == "outs" else "dependencies"
                problems.append(f"{LOCK}: stage {stage} has other {what} than in {DAG}: {shown}")
    row.lock = "differs" if problems else "yes"
    yield from problems


def _check_outs(row: StageRow, entry: Mapping[str, Any], cache: ObjectStore, result: Verification) -> None:
    """Hash the outputs of a stage again, and count them in its row."""
    for output in locked({row.stage: entry}):
        if not output.path.exists():
            row.absent += 1
            result.absent.append(str(output.path))
            continue
        wrong = list(wrong_outputs([output], cache))
        row.changed += bool(wrong)
        row.present += not wrong
        result.differences += wrong


def _wrong_deps(
    row: StageRow, entry: Mapping[str, Any], writers: Mapping[str, tuple[str, str]], repo: "Repo"
) -> Iterator[str]:
    """What is wrong with the dependencies of a stage, as the beginning of a line that ends with the stage.

    A dependency that is an output of another stage is compared in dvc.lock, since its bytes are checked as those of the output.
    """
    for dep in entry.get("deps") or ():
        path, problem = Path(dep["path"]), None
        if dep["path"] in writers:
            writer, md5 = writers[dep["path"]]
            if md5 != dep["md5"]:
                problem = f"{LOCK}: {path} is not the one that stage {writer} wrote, for"
        elif not path.exists():
            above = [parent for parent in path.parents if str(parent) in writers]
            if above and not above[0].exists():  # part of an absent output
                continue
            problem = f"{path}: absent, needed by"
        elif _md5_of_dep(path, repo) != dep["md5"]:
            problem = f"{path}: not the one read by"
        row.deps_changed += problem is not None
        row.deps += problem is None
        if problem:
            yield problem


def _md5_of_dep(path: Path, repo: "Repo") -> str:
    """DVC's hash of a file or a folder, without what .dvcignore leaves out, such as __pycache__."""
    if not path.is_dir():
        return file_hash(path, "md5") if path.is_file() else ""
    top = path.resolve()
    files = map(Path, repo.dvcignore.find(repo.fs, str(top)))
    return folder_hash({file.relative_to(top).as_posix(): file_hash(file, "md5") for file in files})


def _wrong_params(row: StageRow, entry: Mapping[str, Any], trees: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Parameters whose values changed since the stage ran, as the beginning of a line that ends with the stage."""
    for file, values in (entry.get("params") or {}).items():
        for key, value in values.items():
            same = file in trees and _value(trees[file], key) == value
            row.params += same
            row.params_changed += not same
            if not same:
                yield f"{file}: {key}: not the value read by"


def _value(tree: Any, key: str) -> Any:
    """The value of a dotted key, in DVC's notation; None if it is missing."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def wrong_outputs(outputs: Iterable[LockedOutput], cache: ObjectStore) -> Iterator[str]:
    """Outputs in the working tree whose bytes changed since they were written."""
    for stage, path, md5 in outputs:
        if path.is_dir():
            hashes = file_hashes(path)
            if folder_hash(hashes) != md5:
                listed = cache.listed(md5)
                wrong = [path] if listed is None else [path / name for name in unequal(hashes, listed)]
                yield from (f"{name}: not what stage {stage} wrote" for name in wrong)
        elif path.exists() and not (path.is_file() and file_hash(path, "md5") == md5):
            yield f"{path}: not what stage {stage} wrote"


def wrong_objects(store: ObjectStore, names: Iterable[str]) -> Iterator[str]:
    """Objects whose content does not match their name, which is its hash."""
    objects = list(names)
    with progress(len(objects), "object", store.name) as bar:
        for name in objects:
            try:
                intact = hashed(store.read(name)) == name.removesuffix(FOLDER)
            except FileNotFoundError:
                yield f"{store.name}: {name}: missing"
            else:
                if not intact:
                    path = store.objects.oid_to_path(name)
                    yield f"{store.name}: {path}: damaged; remove it, and `dvc fetch` or `dvc repro` brings it back"
            bar.update()


def wrong_remote(repo: "Repo", name: str, outputs: Iterable[LockedOutput], cache: ObjectStore) -> Iterator[str]:
    """Objects that dvc.lock needs and that are missing or damaged in a remote."""
    store = ObjectStore(f"remote {name}", repo.cloud.get_remote_odb(name))
    needed: list[str] = []
    for _, path, md5 in outputs:
        if repo.find_outs_by_path(str(path))[0].use_cache:  # metrics are in Git
            needed.append(md5)
            if md5.endswith(FOLDER):
                needed += (store.listed(md5) or cache.listed(md5) or {}).values()
    yield from wrong_objects(store, dict.fromkeys(needed))


def unequal(hashes: Mapping[str, str], listed: Mapping[str, str]) -> list[str]:
    """Names that are on one side only, or whose hashes differ."""
    return sorted(name for name in hashes.keys() | listed.keys() if hashes.get(name) != listed.get(name))


def hashed(chunks: Iterable[bytes]) -> str:
    """MD5 of bytes in chunks. It detects damage, not forgery."""
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
