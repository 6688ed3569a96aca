"""The spool: a run's events on disk before they are sent, so a dead tracking server or a killed process loses nothing.

    .prefdag/spool/NAME/events.jsonl   one event per line, append-only; the sender reads it as its queue
                        sent.json      the offset up to which MLflow has acknowledged every byte
                        files/         copies of the artifacts, which the next run of a stage would overwrite
    .prefdag/spool/NAME.lock           held by the process that writes or sends; a killed process releases it

Floats survive exactly (JSON stores their shortest exact form), NaN and infinity included. An event is one `write`, so
kill -9 leaves whole lines. A line that a power cut left incomplete is dropped.
"""

import errno
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prefdag.lifecycle.secrets import without_secrets
from prefdag.runtime.artifacts import read_json, remove, scratch, write_json, writing
from prefdag.tracking.keys import Names

# "kind" (start, step, file or status), "time" (milliseconds since 1970), and the keys of that kind.
Event = dict[str, Any]


@dataclass(frozen=True)
class Delivered:
    """How far a spool was sent: everything before byte `offset` is in run `run_id` of `store`."""

    store: str
    run_id: str
    offset: int


@dataclass(frozen=True)
class Spool:
    """One run's events. Only this process writes and sends them, since it holds the lock."""

    folder: Path
    lock: FileLock = field(repr=False)
    names: Names = field(repr=False, compare=False, default_factory=Names)  # of the metrics, for MLflow

    @property
    def log(self) -> Path:
        return self.folder / "events.jsonl"

    def append(self, event: Mapping[str, Any]) -> None:
        """Append an event, without secrets. Once this returns, a killed process does not lose it.

        Raises `OSError` if the disk is full; the log then ends with the previous event.
        """
        event = event if event["kind"] == "step" else _without_secrets(event)
        line = json.dumps(event).encode() + b"\n"
        with self.log.open("ab", buffering=0) as stream:
            whole = stream.tell()
            if stream.write(line) < len(line):
                stream.truncate(whole)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.log))

    def events(self, offset: int = 0) -> Iterator[tuple[Event, int]]:
        """The events from a byte offset on, each with the offset of its end. An incomplete last line is left out."""
        with self.log.open("rb") as stream:
            stream.seek(offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                yield json.loads(line), offset

    def name_metrics(self, offset: int) -> None:
        """Name the metrics before `offset`, which another process sent, so that later ones get other names than these."""
        for event, end in self.events() if offset and not self.names else ():
            if end > offset:
                return
            for key in event.get("metrics", ()):
                self.names(key)

    def copy_of(self, path: Path) -> Path:
        """The path of an artifact's copy. `path` is relative to the repository root."""
        return self.folder / "files" / path

    @property
    def delivered(self) -> Delivered | None:
        """The last acknowledgement; None if nothing was acknowledged yet."""
        path = self.folder / "sent.json"
        return Delivered(**read_json(path)) if path.exists() else None

    def acknowledge(self, delivered: Delivered) -> None:
        """Record on disk how far the spool was sent."""
        with writing(self.folder / "sent.json") as temporary:
            write_json(temporary, asdict(delivered))

    @property
    def status(self) -> str | None:
        """RUNNING, or how the run ended; None if the process died before its first event was complete."""
        status = None
        for event, _ in self.events():
            status = event.get("status", "RUNNING")
        return status

    def all_sent_to(self, store: str) -> bool:
        """Whether a store has every event."""
        delivered = self.delivered
        return delivered is not None and delivered.store == store and delivered.offset == self.log.stat().st_size

    def delete(self) -> None:
        """Remove a spool after all its events were sent."""
        remove(self.folder)
        remove(Path(self.lock.lock_file))

    def release(self) -> None:
        """Give up the lock, so that another process can claim the spool."""
        self.lock.release()


def claim(folder: Path) -> Spool | None:
    """Lock the spool in `folder` for this process, creating it if needed. Returns None if another process holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Not thread-local: the sending thread releases it.
    spool = Spool(folder, FileLock(folder.with_name(f"{folder.name}.lock"), timeout=0, thread_local=False))
    try:
        spool.lock.acquire()
    except Timeout:
        return None
    folder.mkdir(exist_ok=True)
    spool.log.touch()
    whole = max((end for _, end in spool.events()), default=0)
    os.truncate(spool.log, whole)  # else the next event would be appended to an incomplete one
    return spool


def claim_any(name: str) -> Spool:
    """The spool of this name, or a new one beside it if another process holds it: an experiment with the same stage, say."""
    folder = scratch("spool", name)
    while (spool := claim(folder)) is None:
        folder = folder.with_name(f"{name}-{uuid.uuid4().hex[:8]}")
    return spool


def folders() -> list[Path]:
    """The folders of all spools."""
    return sorted(path for path in scratch("spool").glob("*") if path.is_dir())


def _without_secrets(value: Any) -> Any:
    """The value with secrets removed from every text in it."""
    if isinstance(value, str):
        return without_secrets(value)
    return {key: _without_secrets(item) for key, item in value.items()} if isinstance(value, Mapping) else value
