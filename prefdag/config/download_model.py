"""The section download_model."""

from prefdag.config.sources import FolderSource, Source
from prefdag.runtime.types import strict


@strict
class DownloadModel:
    source: Source
    adapter: FolderSource | None  # a LoRA adapter to merge into it
