"""Whether every byte is still what dvc.lock says: of the outputs, of DVC's cache, of a remote.

DVC itself goes by names and times: a cache object in which one byte flipped is checked out, pushed and trained on without a
word. Here everything is read and hashed again.

    for problem in differences(remote="storage"): print(problem)
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefdag.runtime.errors import ParamsError
from prefdag.runtime.progress import progress
from prefdag.runtime.yaml import read_yaml

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB

LOCK = Path("dvc.lock")
FOLDER = ".dir"  # ends the hash of a folder, which is that of the list of its files


class Output(NamedTuple):
    """What a stage wrote, as dvc.lock has it."""

    stage: str
    path: Path
    md5: str


@dataclass(frozen=True)
class Store:
    """A place in which objects stand under their hashes: the cache, a remote."""

    name: str
    objects: "HashFileDB"

    def read(self, md5: str) -> Iterator[bytes]:
        """An object's content in pieces. Raises `FileNotFoundError`."""
        with self.objects.fs.open(self.objects.oid_to_path(md5), "rb") as stream:
            while piece := stream.read(2**20):
                yield piece

    def listed(self, md5: str) -> dict[str, str] | None:
        """Hash by name of the files in a folder; None where the list is not here, or another one."""
        with suppress(FileNotFoundError):
            content = b"".join(self.read(md5))
            if hashed([content]) == md5.removesuffix(FOLDER):
                return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}
        return None


def differences(remote: str | None = None) -> Iterator[str]:
    """A line for everything that is not as dvc.lock says: outputs, then objects of the cache, then those of `remote`.

    An output that is not here is no difference, nor an object: `dvc pull` or `dvc repro` bring it. In a remote every object
    that dvc.lock needs has to be.

    Args:
        remote: the name of a DVC remote; None: none is looked at.

    Raises:
        ParamsError: there is no dvc.lock, no such remote, or it does not answer.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    outputs = list(locked(read_yaml(LOCK)))
    with Repo() as repo:
        cache = Store("cache", repo.cache.local)
        yield from wrong_outputs(outputs, cache)
        yield from wrong_objects(cache, sorted(cache.objects.all()))
        if remote is not None:
            try:
                yield from wrong_remote(repo, remote, outputs, cache)
            except (DvcException, OSError) as error:
                raise ParamsError(
                    f".dvc/config: remote '{remote}': {error}; `dvc remote list` names those there are"
                ) from None


def locked(lock: Mapping[str, Any]) -> Iterator[Output]:
    """The outputs of all stages, in the order of dvc.lock."""
    for stage, said in lock["stages"].items():
        for out in said.get("outs", []):
            yield Output(stage, Path(out["path"]), out["md5"])


def wrong_outputs(outputs: Iterable[Output], cache: Store) -> Iterator[str]:
    """Outputs in the working tree with other bytes than when they were written."""
    for stage, path, md5 in outputs:
        if path.is_dir():
            found = {
                file.relative_to(path).as_posix(): md5_of(file) for file in sorted(path.rglob("*")) if file.is_file()
            }
            if folder_md5(found) != md5:
                listed = cache.listed(md5)
                names = [path] if listed is None else [path / name for name in unequal(found, listed)]
                yield from (f"{name}: not what stage {stage} wrote" for name in names)
        elif path.exists() and md5_of(path) != md5:
            yield f"{path}: not what stage {stage} wrote"


def wrong_objects(store: Store, names: Iterable[str]) -> Iterator[str]:
    """Objects whose content is not what their name says."""
    every = list(names)
    with progress(len(every), "object", store.name) as bar:
        for name in every:
            try:
                good = hashed(store.read(name)) == name.removesuffix(FOLDER)
            except FileNotFoundError:
                yield f"{store.name}: {name}: not there"
            else:
                if not good:
                    yield f"{store.name}: {store.objects.oid_to_path(name)}: damaged; remove it, and fetch or make it again"
            bar.update()


def wrong_remote(repo: "Repo", name: str, outputs: Iterable[Output], cache: Store) -> Iterator[str]:
    """Objects that dvc.lock needs and that a remote lacks, or has with other bytes."""
    store = Store(f"remote {name}", repo.cloud.get_remote_odb(name))
    needed: list[str] = []
    for _, path, md5 in outputs:
        if repo.find_outs_by_path(str(path))[0].use_cache:  # a metric is in Git
            needed.append(md5)
            if md5.endswith(FOLDER):
                needed += (store.listed(md5) or cache.listed(md5) or {}).values()
    yield from wrong_objects(store, dict.fromkeys(needed))


def unequal(found: Mapping[str, str], listed: Mapping[str, str]) -> list[str]:
    """Names that either side lacks, or whose hashes differ."""
    return sorted(name for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))


def folder_md5(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder, from the hashes of its files by name."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashed([json.dumps(entries, sort_keys=True).encode()]) + FOLDER


def md5_of(path: Path) -> str:
    """The hash that DVC has of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def hashed(pieces: Iterable[bytes]) -> str:
    """MD5 of bytes that come in pieces: a name for content, not a defence against who forges it."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
