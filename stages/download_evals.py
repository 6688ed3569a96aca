"""Fetch the evaluation sets from their pinned sources, unchanged and in parallel, into one folder per set."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

from prefdag.config.download_evals import DownloadEvals
from prefdag.runtime import artifacts
from prefdag.runtime.stage import stage
from prefdag.sources.fetching import fetch

EVALS = Path("data/raw/evals")


@stage
def main(download_evals: DownloadEvals) -> None:
    sources = {field.name: getattr(download_evals, field.name) for field in fields(download_evals)}
    with artifacts.writing(EVALS) as folder, ThreadPoolExecutor() as pool:
        folder.mkdir()
        fetches = [
            pool.submit(fetch, source, folder / name, f"download_evals.{name}")
            for name, source in sources.items()
            if source is not None
        ]
        for fetched in fetches:
            fetched.result()


if __name__ == "__main__":
    main.run()
