"""The section download_model."""

from prefdag.config.sources import Source
from prefdag.config.types import strict


@strict
class DownloadModel:
    source: Source
