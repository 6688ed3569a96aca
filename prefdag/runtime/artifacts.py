"""Files that stages write, atomically and with the same bytes every time, and the hashes that identify them."""

import hashlib
import importlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import psutil

from prefdag.lifecycle.errors import DataError
from prefdag.lifecycle.launcher import rank
from prefdag.recorded import recorded
from prefdag.runtime.dvc_files import names, read_stage
from prefdag.runtime.hashing import file_hash

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def project_root() -> Path:
    """The main repository, as DVC names it. A queued experiment runs in a temporary copy, but this is still the original."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def scratch(*parts: str) -> Path:
    """A path in the ignored scratch folder that all experiments share."""
    return project_root().joinpath(".prefdag", *parts)


@contextmanager
def writing(target: Path, clear: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `target` for a file or a folder, and rename it to `target` if the block succeeds.

    A block that raises, or a process that is killed, leaves nothing under the final name. The next writer removes what a
    killed process left behind. With several targets in one `with`, all are written before the first is renamed. Of several
    processes that make the same output, the first one writes it; what the others write is thrown away.

    Args:
        clear: removes a folder that `target` replaces, and raises if that has anything that is not ours. Without it, the
            folder is removed with all that it has: it must be an output of a stage, which DVC would remove too.
    """
    if rank() > 0:
        with TemporaryDirectory() as folder:
            yield Path(folder, target.name)
        return
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
                path.chmod(0o666 & ~umask())  # some writers choose 0600
                fsync(path)
        if target.is_dir():  # unlike a file, a folder cannot be replaced in one step
            (clear or remove)(target)
        temporary.replace(target)
        fsync(target.parent)
    finally:
        remove(temporary)


def umask() -> int:
    """The permissions that the user wants new files not to have. Where /proc has it, no other thread sees a change of it."""
    with suppress(OSError, StopIteration, ValueError), Path("/proc/self/status").open() as status:
        return int(next(line for line in status if line.startswith("Umask:")).split()[1], 8)
    current = os.umask(0o077)
    os.umask(current)
    return current


def fsync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys. Raises `ValueError` for NaN and infinity, which JSON does not have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text(value), "utf-8")


def json_text(value: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file that a stage wrote. Raises `DataError` if it is missing or broken."""
    try:
        return json.loads(recorded(path).read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: not found; `dvc repro` makes it") from None
    except (ValueError, RecursionError) as error:
        raise _broken(path, "JSON", error) from None


def read_csv(path: Path, **options: Any) -> "pd.DataFrame":
    """Read a CSV file with a header. Raises `DataError` if it is missing or not a table.

    Args:
        options: passed to `pandas.read_csv`.
    """
    import pandas as pd

    try:
        return pd.read_csv(recorded(path), **options)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; `dvc repro` makes it") from None
    except ValueError as error:  # pandas' own errors are ValueErrors, and so is text that is not UTF-8
        raise _broken(path, "a CSV table", error) from None


def read_table(path: Path, **options: Any) -> "pa.Table":
    """Read a Parquet file that a stage wrote. Raises `DataError` if it is missing or broken, or lacks a column.

    Args:
        options: passed to `pyarrow.parquet.read_table`.
    """
    import pyarrow.parquet as pq

    with _parquet_errors(path):
        table = pq.read_table(recorded(path), **options)
        table.validate(full=True)  # reading does not see text that is not UTF-8, or an offset that leads out
    if missing := sorted(set(options.get("columns") or ()) - set(table.column_names)):
        raise DataError(f"{path}: no column {missing[0]}; `dvc repro` makes it again")
    return table


def read_batches(path: Path, rows: int, columns: list[str] | None = None) -> Iterator["pa.RecordBatch"]:
    """The same in batches of at most `rows` rows."""
    import pyarrow.parquet as pq

    with _parquet_errors(path), pq.ParquetFile(recorded(path)) as file:
        for batch in file.iter_batches(rows, columns=columns):
            batch.validate(full=True)
            yield batch


def count_rows(path: Path) -> int:
    """The number of rows of a Parquet file that a stage wrote. Raises `DataError`."""
    import pyarrow.parquet as pq

    with _parquet_errors(path):
        return int(pq.read_metadata(recorded(path)).num_rows)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: not found; `dvc repro` makes it") from None
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, "a Parquet file", error) from None


def read_tensors(path: Path, framework: Literal["torch", "numpy"]) -> dict[str, Any]:
    """The tensors of a safetensors file that a stage wrote, by name. Raises `DataError` if it is missing or broken."""
    from safetensors import SafetensorError

    load: Any = importlib.import_module(f"safetensors.{framework}").load_file
    try:
        return dict(load(recorded(path)))
    except FileNotFoundError:
        raise DataError(f"{path}: not found; `dvc repro` makes it") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _broken(path, "a safetensors file", error) from None


def _broken(path: Path, kind: str, error: Exception) -> DataError:
    return DataError(f"{path}: not {kind} ({' '.join(str(error).split())}); `dvc repro` makes it again")


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of a folder's file names and contents in sorted order."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file() and p.parent.name != "__pycache__"):
            digest.update(f"{file.relative_to(path).as_posix()}\0{file_hash(file, 'sha256')}\n".encode())
        return digest.hexdigest()
    return file_hash(path, "sha256")


def stage_key(stage: str, params: Mapping[str, Any]) -> str:
    """A hash, 16 hex digits, of a stage's parameters and of its `deps` in dvc.yaml (see docs/pipeline.md).

    Checkpoints are kept under this key, so a changed parameter, input or line of code starts training at step zero.
    """
    deps = names(read_stage(stage), "deps")
    parts = {"stage": stage, "params": dict(params), "deps": {dep: sha256(Path(dep)) for dep in deps}}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
