"""The section download_evals."""

from prefdag.config.sources import Source
from prefdag.runtime.types import strict


@strict
class DownloadEvals:
    truthfulqa: Source | None
    winogrande: Source | None
    pku: Source | None
