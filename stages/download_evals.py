"""Fetch the two evaluation sets from their pinned sources, as they are: one folder a set."""

from pathlib import Path

from prefdag import artifacts
from prefdag.config import DownloadEvals
from prefdag.data.sources import fetch
from prefdag.stage import stage

EVALS = Path("data/raw/evals")


@stage
def main(download_evals: DownloadEvals) -> None:
    with artifacts.writing(EVALS) as folder:
        fetch(download_evals.truthfulqa, folder / "truthfulqa", "download_evals.truthfulqa")
        fetch(download_evals.winogrande, folder / "winogrande", "download_evals.winogrande")


if __name__ == "__main__":
    main.run()
