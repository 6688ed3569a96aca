"""Two workers train two classifiers, then one more: all succeed, and MLflow has each run once and complete."""

import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from clones import Run, stages_run

SHIFTS = {4: ["1", "3"], 5: ["3"]}  # values of dpo_image.max_shift, by the number of examples in the reports
CHANGED = ["control_image", "dpo_image", "health_image", "evaluate_image", "report", "publish"]


def pipeline_runs(folder: Path) -> list[Any]:
    """The runs of whole pipelines, newest first."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("prefdag")
    assert experiment
    return list(client.search_runs([experiment.experiment_id], "tags.kind = 'pipeline'"))


def final_status(run: Run) -> dict[str, str]:
    """The final status of each task by name, once all have ended."""
    deadline = time.monotonic() + 1200
    while True:
        lines = run("dvc", "queue", "status").stdout
        status = dict(re.findall(r"^\S{7} +(\S+) .* (Success|Failed|Queued|Running) *$", lines, re.MULTILINE))
        if not {"Queued", "Running"} & set(status.values()):
            return status
        assert time.monotonic() < deadline, status
        time.sleep(10)  # DVC takes seconds of a core to answer


def test_two_workers_run_a_queue(copy: Path, run: Run) -> None:
    """In the second round the classifier comes from DVC's run cache; stages that read it still run."""
    runs = pipeline_runs(copy)
    first = runs[0]
    finished = 0
    for examples, shifts in SHIFTS.items():
        values = [f"dpo_image.max_shift={','.join(shifts)}", f"report.image_examples={examples}"]
        run("dvc", "exp", "run", "--queue", "-S", values[0], "-S", values[1])
        run("dvc", "queue", "start", "--jobs", "2")
        status = final_status(run)
        finished += len(shifts)
        assert list(status.values()) == ["Success"] * finished
        if examples == 4:
            for name in status:
                assert sorted(stages_run(run("dvc", "queue", "logs", name).stdout)) == sorted(CHANGED)
        known = {pipeline.info.run_id for pipeline in runs}
        runs = pipeline_runs(copy)
        new = [pipeline for pipeline in runs if pipeline.info.run_id not in known]
        assert len(runs) == len(known) + len(new)
        assert sorted(pipeline.data.params["dpo_image.max_shift"] for pipeline in new) == shifts
        assert {pipeline.info.status for pipeline in new} == {"FINISHED"}
        for pipeline in new:  # all metrics of the first run, and all points of its curves
            assert pipeline.data.metrics.keys() == first.data.metrics.keys()
        assert len({rows_of(copy, pipeline.info.run_id) for pipeline in (*new, first)}) == 1
    assert [*(copy / ".prefdag" / "spool").glob("*/events.jsonl")] == []  # nothing left to send


def rows_of(folder: Path, run_id: str) -> int:
    """The number of a run's metric rows in the database."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        (count,) = connection.execute("SELECT count(*) FROM metrics WHERE run_uuid = ?", (run_id,)).fetchone()
    return int(count)
