"""Fetch the preference pairs from their pinned source, unchanged."""

from pathlib import Path

from prefdag.config.download_pairs import DownloadPairs
from prefdag.runtime import artifacts
from prefdag.runtime.stage import stage
from prefdag.sources.fetching import fetch

PAIRS = Path("data/raw/pairs")


@stage
def main(download_pairs: DownloadPairs) -> None:
    with artifacts.writing(PAIRS) as folder:
        fetch(download_pairs.source, folder, "download_pairs.source")


if __name__ == "__main__":
    main.run()
