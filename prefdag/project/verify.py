"""Checks outputs, DVC's cache and a remote against dvc.lock, byte by byte.

DVC itself trusts names and times: it checks out, pushes and trains on a cache object with a flipped byte without any
warning. Here everything is read and hashed again.

    for problem in differences(remote="storage"): print(problem)
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefdag.lifecycle.errors import ParamsError
from prefdag.lifecycle.progress import progress
from prefdag.runtime.yaml import read_yaml

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB

LOCK = Path("dvc.lock")
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


def differences(remote: str | None = None) -> Iterator[str]:
    """One line for every difference from dvc.lock: first outputs, then objects of the cache, then those of `remote`.

    A missing output or cache object is not a difference, since `dvc pull` or `dvc repro` brings it back. A remote must have
    every object that dvc.lock needs.

    Args:
        remote: the name of a DVC remote; None skips this check.

    Raises:
        ParamsError: there is no dvc.lock or no such remote, or the remote does not answer.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    outputs = list(locked(read_yaml(LOCK)))
    with Repo() as repo:
        cache = ObjectStore("cache", repo.cache.local)
        yield from wrong_outputs(outputs, cache)
        yield from wrong_objects(cache, sorted(cache.objects.all()))
        if remote is not None:
            try:
                yield from wrong_remote(repo, remote, outputs, cache)
            except (DvcException, OSError) as error:
                raise ParamsError(
                    f".dvc/config: remote '{remote}': {error}; `dvc remote list` lists the remotes"
                ) from None


def locked(lock: Mapping[str, Any]) -> Iterator[LockedOutput]:
    """The outputs of all stages, in the order of dvc.lock."""
    for stage, entry in lock["stages"].items():
        for out in entry.get("outs", []):
            yield LockedOutput(stage, Path(out["path"]), out["md5"])


def wrong_outputs(outputs: Iterable[LockedOutput], cache: ObjectStore) -> Iterator[str]:
    """Outputs in the working tree whose bytes changed since they were written."""
    for stage, path, md5 in outputs:
        if path.is_dir():
            hashes = {
                file.relative_to(path).as_posix(): md5_of(file) for file in sorted(path.rglob("*")) if file.is_file()
            }
            if folder_md5(hashes) != md5:
                listed = cache.listed(md5)
                names = [path] if listed is None else [path / name for name in unequal(hashes, listed)]
                yield from (f"{name}: not what stage {stage} wrote" for name in names)
        elif path.exists() and md5_of(path) != md5:
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


def folder_md5(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder, from the hashes of its files by name."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashed([json.dumps(entries, sort_keys=True).encode()]) + FOLDER


def md5_of(path: Path) -> str:
    """DVC's hash of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def hashed(chunks: Iterable[bytes]) -> str:
    """MD5 of bytes in chunks. It detects damage, not forgery."""
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
