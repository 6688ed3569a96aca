"""The section download_pairs."""

from prefdag.config.sources import Source
from prefdag.config.types import strict


@strict
class DownloadPairs:
    source: Source
