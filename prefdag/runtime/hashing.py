"""Hashes of files. The hash of a file that has not changed for a while is computed once per process."""

import functools
import hashlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from json import dumps
from pathlib import Path
from typing import Literal

SETTLED = 2.0  # seconds: a file changed more recently may change again without its times showing it
THREADS = 4  # hashing releases Python's lock

Algorithm = Literal["sha256", "md5"]


def file_hash(path: Path, algorithm: Algorithm) -> str:
    """The hash of a file's content, in hexadecimal. MD5 detects damage, not forgery."""
    status = path.stat()
    if time.time() - status.st_ctime < SETTLED:
        return _hash(path, algorithm)
    return _hash_once(
        path, algorithm, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def _hash(path: Path, algorithm: Algorithm, *identity: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(
            stream, lambda: hashlib.new(algorithm, usedforsecurity=algorithm != "md5")
        ).hexdigest()


_hash_once = functools.lru_cache(maxsize=4096)(_hash)  # a stage hashes its model more than once


def dvc_hash(path: Path) -> str:
    """The hash that dvc.lock has of a file or a folder."""
    return folder_hash(file_hashes(path)) if path.is_dir() else file_hash(path, "md5")


def file_hashes(folder: Path) -> dict[str, str]:
    """DVC's hashes of all files below a folder, by their paths in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(THREADS) as threads:
        hashes = threads.map(lambda path: file_hash(path, "md5"), files)
        return {path.relative_to(folder).as_posix(): value for path, value in zip(files, hashes, strict=True)}


def folder_hash(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder: that of the list of its files and their hashes."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashlib.md5(dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
