"""The section download_model."""

from prefdag.config.sources import Source
from prefdag.runtime.types import strict


@strict
class DownloadModel:
    source: Source
