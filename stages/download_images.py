"""Fetch the images from their pinned source, unchanged."""

from pathlib import Path

from prefdag.config.download_images import DownloadImages
from prefdag.runtime import artifacts
from prefdag.runtime.stage import stage
from prefdag.sources.fetching import fetch

IMAGES = Path("data/raw/images")


@stage
def main(download_images: DownloadImages) -> None:
    with artifacts.writing(IMAGES) as folder:
        fetch(download_images.source, folder, "download_images.source")


if __name__ == "__main__":
    main.run()
