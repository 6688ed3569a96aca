"""The whole pipeline as one MLflow run: parameters, metrics, curves and report.

Apart from `tracking`, so that a change of what is published does not train anything again.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdag.runtime.errors import DataError
from prefdag.runtime.yaml import flatten
from prefdag.tracking.runs import pipeline_run

if TYPE_CHECKING:
    from prefdag.config.params import Params


def publish(
    params: "Params", metrics: Mapping[str, Any], curves: Mapping[str, tuple[Path, Path]], files: Iterable[Path]
) -> None:
    """One flat run of all that the pipeline has to show.

    Args:
        metrics: nested numbers; their keys are joined by "/". What is not a number is no metric.
        curves: of each stage its history.csv (`STAGE/loss`, ...) and its validation.csv (`STAGE/val/loss`, ...).
        files: become artifacts, under these paths.

    Raises:
        DataError: a curve is absent, or a cell of it is no number.
    """
    steps = [
        row
        for stage, (history, validation) in curves.items()
        for row in (*_rows(history, stage), *_rows(validation, f"{stage}/val"))
    ]
    with pipeline_run(params) as run:
        run.log(0, numbers(metrics))
        for step, values in steps:
            run.log(step, values)
        for path in files:
            run.file(path)


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Nested numbers as one level, keys joined by "/"."""
    return {
        key.replace(".", "/"): value
        for key, value in flatten(metrics).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _rows(path: Path, prefix: str) -> Iterator[tuple[int, dict[str, float]]]:
    """The step of each row of a CSV file, and its other cells as `PREFIX/COLUMN`; an empty cell is no value."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for number, row in enumerate(csv.DictReader(stream), 1):
                try:
                    step = int(row.pop("step"))
                    yield step, {f"{prefix}/{column}": float(cell) for column, cell in row.items() if cell}
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(f"{path}:{number}: no row of numbers ({error}); `dvc repro` makes it") from None
    except FileNotFoundError:
        raise DataError(f"{path}: not found; `dvc repro` makes it") from None
