"""Publishing the whole pipeline as one MLflow run: parameters, metrics, curves and report.

This is a module of its own so that a change to what is published does not rerun any training stage.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.yaml import flatten
from prefdag.tracking import view
from prefdag.tracking.runs import pipeline_run

SHOWN_PARAMS = ("beta", "loss", "seed")  # in MLflow's list of runs


def publish(
    parameters: Mapping[str, Any],
    metrics: Mapping[str, Any],
    curves: Mapping[str, tuple[Path, Path]],
    files: Iterable[Path],
    *,
    main_metrics: Mapping[str, Any] = MappingProxyType({}),
    rounds: Path | None = None,
    seconds: Mapping[str, float | None] = MappingProxyType({}),
) -> None:
    """Publish one flat run with all results of the pipeline. It lasts as long as its stages took together.

    Args:
        parameters: all of them, by dotted key.
        metrics: nested; keys are joined by "/". Values that are not numbers are skipped.
        curves: history.csv (`STAGE/loss`, ...) and validation.csv (`STAGE/val/loss`, ...) by stage.
        files: logged as artifacts under the same paths.
        main_metrics: nested, as `metrics`; the columns of MLflow's list of runs.
        rounds: the table of rounds (`rounds/win_rate`, ...), whose steps are the rounds.
        seconds: how long each stage took, logged as `seconds/STAGE`; None if unknown.

    Raises:
        DataError: a CSV file is missing, or a cell is not a number.
    """
    steps = [
        row
        for stage, (history, validation) in curves.items()
        for row in (*_rows(history, stage), *_rows(validation, f"{stage}/val"))
    ]
    if rounds:
        steps += _rows(rounds, "rounds", step="round")
    main = numbers(main_metrics)
    lasted = sum(value for value in seconds.values() if value is not None)
    with pipeline_run(parameters, lasted, view.tags(columns(main), SHOWN_PARAMS) if main else {}) as run:
        run.log(0, main | numbers(metrics) | numbers({"seconds": seconds}))
        # In order of the steps: Weights & Biases drops what comes later with an earlier step.
        for step, values in sorted(steps, key=itemgetter(0)):
            run.log(step, values)
        for path in files:
            run.file(path)


def columns(main: Iterable[str]) -> list[str]:
    """Main metrics in the order of MLflow's list of runs: the language model first, what has an interval first, findings last.

    The ends of intervals are left out.
    """
    keys = set(main)
    shown = sorted(key for key in keys if not key.endswith(("_low", "_high")))
    return sorted(shown, key=lambda key: (key[:5] != "text/", f"{key}_low" not in keys, key.endswith("findings")))


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a nested mapping in one level, with keys joined by "/"."""
    return {
        key.replace(".", "/"): value
        for key, value in flatten(metrics).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _rows(path: Path, prefix: str, step: str = "step") -> Iterator[tuple[int, dict[str, float]]]:
    """For each row of a CSV file, its column `step` and its other cells as `PREFIX/COLUMN`; empty cells are skipped."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for number, row in enumerate(csv.DictReader(stream), 1):
                try:
                    at = int(row.pop(step))
                    yield at, {f"{prefix}/{column}": float(cell) for column, cell in row.items() if cell}
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(f"{path}:{number}: not a row of numbers ({error}); `dvc repro` makes it") from None
    except FileNotFoundError:
        raise DataError(f"{path}: not found; `dvc repro` makes it") from None
