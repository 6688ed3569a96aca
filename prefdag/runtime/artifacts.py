"""Files that stages write: whole or not at all, the same bytes every time; and the hashes that identify them."""

import functools
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from prefdag.runtime.errors import DataError
from prefdag.runtime.yaml import read_yaml

if TYPE_CHECKING:
    import pandas as pd

SETTLED = 2.0  # seconds: a file changed later may change again, and its times be the same


def project_root() -> Path:
    """The main repository. DVC names it, also where a queued experiment runs in a temporary copy of it."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def scratch(*parts: str) -> Path:
    """A path in the ignored scratch folder that all experiments share."""
    return project_root().joinpath(".prefdag", *parts)


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` to create as a file or a folder; rename it when the block ends well.

    A block that raises, or a killed process, leaves nothing under the final name. What a killed one left beside it is
    removed by the next. Of several targets in one `with` none gets its name before all are written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    for path in target.parent.iterdir():
        left = re.fullmatch(rf"\.{re.escape(target.name)}\.(\d+)\.tmp", path.name)
        if left and (path == temporary or not psutil.pid_exists(int(left[1]))):
            remove(path)
    try:
        yield temporary
        for path in [temporary, *temporary.rglob("*")]:
            if path.is_file():
                path.chmod(0o644)  # some writers choose 0600
                fsync(path)
        if target.is_dir():  # a folder is not replaced in one step as a file is
            remove(target)
        temporary.replace(target)
        fsync(target.parent)
    finally:
        remove(temporary)


def fsync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted keys. Raises `ValueError` on NaN and infinity, which JSON does not have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file that a stage wrote. Raises `DataError` where it is absent or broken."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: not found; `dvc repro` makes it") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); `dvc repro` makes it anew") from None


def read_csv(path: Path, **options: Any) -> "pd.DataFrame":
    """A CSV file with a header. Raises `DataError` if it is absent or no table.

    Args:
        options: of `pandas.read_csv`.
    """
    import pandas as pd

    try:
        return pd.read_csv(path, **options)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; `dvc repro` makes it") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise DataError(f"{path}: not a CSV table ({error}); `dvc repro` makes it anew") from None


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of a folder's file names and contents in sorted order."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
        return digest.hexdigest()
    found = path.stat()
    if time.time() - found.st_ctime < SETTLED:
        return _sha256_of_file(path)
    return _sha256_once(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _sha256_of_file(path: Path, *identity: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_sha256_once = functools.lru_cache(maxsize=4096)(_sha256_of_file)  # a stage asks for its model's more than once


def stage_key(stage: str, params: Mapping[str, Any]) -> str:
    """What shapes a stage's result, as 16 hex digits: its parameters and every file that dvc.yaml says it depends on.

    Checkpoints are kept under this key, so that a changed parameter, input or line of code starts at step zero.
    """
    deps = read_yaml(Path("dvc.yaml"))["stages"][stage]["deps"]
    parts = {"stage": stage, "params": dict(params), "deps": {dep: sha256(Path(dep)) for dep in deps}}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
