"""What a run has to report, on disk before it is sent: so a dead tracking server, or a killed process, loses nothing.

    .prefdag/spool/NAME/events.jsonl   one event a line, only ever appended; the sender reads it as its queue
                        sent.json      how far the sender came: MLflow's answer stands behind every byte before it
                        files/         copies of the artifacts, which the next run of a stage would overwrite
    .prefdag/spool/NAME.lock           held by the process that writes or sends; a killed process holds nothing

Floats survive exactly (JSON holds their shortest exact form), NaN and infinity too. An event is one `write`, so kill -9
leaves whole lines; the end of a line that a power cut tore off is dropped.
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

from prefdag.runtime.artifacts import read_json, remove, scratch, write_json, writing

Event = dict[
    str, Any
]  # "kind" (start, step, file or status), "time" (milliseconds since 1970), and what the kind needs


@dataclass(frozen=True)
class Sent:
    """Everything before byte `offset` is in the run `run_id` of `store`."""

    store: str
    run_id: str
    offset: int


@dataclass(frozen=True)
class Spool:
    """One run's events. This process alone writes and sends them: it holds the lock."""

    folder: Path
    lock: FileLock = field(repr=False)

    @property
    def log(self) -> Path:
        return self.folder / "events.jsonl"

    def append(self, event: Mapping[str, Any]) -> None:
        """Add an event; when this returns, a killed process no longer loses it.

        Raises `OSError` where the disk is full; the log then ends with the event before.
        """
        line = json.dumps(event).encode() + b"\n"
        with self.log.open("ab", buffering=0) as stream:
            whole = stream.tell()
            if stream.write(line) < len(line):
                stream.truncate(whole)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.log))

    def events(self, offset: int = 0) -> Iterator[tuple[Event, int]]:
        """The events from a byte offset on, each with the offset of its end."""
        with self.log.open("rb") as stream:
            stream.seek(offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                yield json.loads(line), offset

    def copy_of(self, path: Path) -> Path:
        """Where the copy of an artifact stands, given its path relative to the repository root."""
        return self.folder / "files" / path

    @property
    def sent(self) -> Sent | None:
        """What was acknowledged last; None before the first time."""
        path = self.folder / "sent.json"
        return Sent(**read_json(path)) if path.exists() else None

    def acknowledge(self, sent: Sent) -> None:
        with writing(self.folder / "sent.json") as temporary:
            write_json(temporary, asdict(sent))

    @property
    def status(self) -> str | None:
        """RUNNING, or how the run ended; None where the process died before its first event was whole."""
        status = None
        for event, _ in self.events():
            status = event.get("status", "RUNNING")
        return status

    def all_sent_to(self, store: str) -> bool:
        """Whether a store has every event."""
        return self.sent is not None and self.sent.store == store and self.sent.offset == self.log.stat().st_size

    def delete(self) -> None:
        """Remove a spool whose every event was sent."""
        remove(self.folder)
        remove(Path(self.lock.lock_file))

    def release(self) -> None:
        self.lock.release()


def claim(folder: Path) -> Spool | None:
    """The spool in `folder`, or a new one there, now this process's own; None where another process holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Not thread-local: the thread that sends gives it back.
    spool = Spool(folder, FileLock(folder.with_name(f"{folder.name}.lock"), timeout=0, thread_local=False))
    try:
        spool.lock.acquire()
    except Timeout:
        return None
    folder.mkdir(exist_ok=True)
    spool.log.touch()
    whole = max((end for _, end in spool.events()), default=0)
    os.truncate(spool.log, whole)  # else the next event would be glued to a torn one
    return spool


def claim_any(name: str) -> Spool:
    """The spool of this name; one beside it where another process (an experiment with the same stage, say) holds it."""
    folder = scratch("spool", name)
    while (spool := claim(folder)) is None:
        folder = folder.with_name(f"{name}-{uuid.uuid4().hex[:8]}")
    return spool


def folders() -> list[Path]:
    """The folders of all spools."""
    return sorted(path for path in scratch("spool").glob("*") if path.is_dir())
