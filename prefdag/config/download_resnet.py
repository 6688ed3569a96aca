"""The section download_resnet."""

from prefdag.config.sources import ModelSource
from prefdag.runtime.types import strict


@strict
class DownloadResnet:
    source: ModelSource | None
