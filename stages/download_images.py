"""Fetch the images from their pinned source, as they are."""

from pathlib import Path

from prefdag import artifacts
from prefdag.config import DownloadImages
from prefdag.data.sources import fetch
from prefdag.stage import stage

IMAGES = Path("data/raw/images")


@stage
def main(download_images: DownloadImages) -> None:
    with artifacts.writing(IMAGES) as folder:
        fetch(download_images.source, folder, "download_images.source")


if __name__ == "__main__":
    main.run()
