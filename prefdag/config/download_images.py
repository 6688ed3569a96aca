"""The section download_images."""

from prefdag.config.sources import ImageSource
from prefdag.runtime.types import strict


@strict
class DownloadImages:
    source: ImageSource
