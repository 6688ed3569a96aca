"""Files that several processes need and no stage before has downloaded: reward models, prompts."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from prefdag.config.sources import PathSource
from prefdag.distributed.process import process
from prefdag.runtime.artifacts import scratch, writing
from prefdag.sources.fetching import fetch

if TYPE_CHECKING:
    from prefdag.config.sources import Source


def fetched(source: "Source", kind: str, key: str) -> Path:
    """The scratch folder of a source's files, which the first process downloads if it is not there; the others wait.

    Args:
        kind: the folder's parent, such as "prompts".
        key: of the source in params.yaml.

    Raises:
        SourceError: as `fetch`.
    """
    into = scratch(kind, hashlib.sha256(repr(source).encode()).hexdigest()[:16])
    with process().main_process_first():
        unpinned = isinstance(source, PathSource) and source.sha256 is None  # it may have changed
        if process().is_main_process and (unpinned or not into.is_dir()):
            with writing(into) as folder:
                fetch(source, folder, key)
    return into
