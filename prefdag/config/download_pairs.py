"""The section download_pairs."""

from prefdag.config.sources import Source
from prefdag.runtime.types import strict


@strict
class DownloadPairs:
    source: Source
