"""Tracking: metrics are exact, and nothing is lost or duplicated, whatever happens to the server or the process.

All tests share one database, since creating one takes seconds. A test identifies its runs by key or name.
"""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from prefdag.check_params import load_params
from prefdag.lifecycle.errors import DataError
from prefdag.runtime.yaml import flatten
from prefdag.tracking import delivery, spool, store, view
from prefdag.tracking import runs as tracking
from prefdag.tracking.publishing import publish


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(autouse=True)
def _environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in store.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(project)
    yield
    for folder in spool.folders():  # a failed test must not affect the next
        if left := spool.claim(folder):
            left.delete()
            left.release()
    store.Store().note_alive()


def runs(filter_string: str) -> list[Any]:
    """The matching runs in the database, newest first."""
    client = client_of_database()
    experiment = client.get_experiment_by_name("prefdag")
    return list(client.search_runs([experiment.experiment_id], filter_string))


def client_of_database() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{os.environ['DVC_ROOT']}/mlflow.db")


def run_of(key: str) -> Any:
    """The one run with this key."""
    (run,) = runs(f"tags.`prefdag.key` = '{key}'")
    return run


def history(run: Any, metric: str) -> list[tuple[int, float]]:
    """All points of a curve, including duplicates."""
    points = client_of_database().get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in points)


def child(code: str) -> subprocess.Popen[str]:
    """A process that runs `code` in the same project, with tracking imported."""
    code = "from prefdag.tracking import delivery, runs as tracking\nimport os, time\n" + textwrap.dedent(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def join_delivery() -> None:
    """Wait for delivery threads that a stage left running."""
    for thread in threading.enumerate():
        if thread.name == "prefdag-delivery":
            thread.join()


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> str:
    """Use the address of a server that is gone as the tracking server."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://user:secret@127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


# --- a server that answers


@pytest.mark.slow
def test_a_stage_run_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "lurid-oxen")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "f" * 40)
    losses = [0.1 + 0.2, 1e-300, -0.0, 5e-324, 2 / 3]
    with tracking.stage_run(
        "dpo_text", {"beta": 0.1, "dpo_text": {"targets": ["q", "v"], "flip": None}}, "exact"
    ) as run:
        for step, loss in enumerate(losses):
            run.log(step, {"loss": loss, "rewards/margin": step})
        run.log(4, {"val/loss": 0.5})
    finished = run_of("exact")
    assert history(finished, "loss") == list(enumerate(losses))
    assert history(finished, "rewards/margin") == [(step, float(step)) for step in range(5)]
    assert history(finished, "val/loss") == [(4, 0.5)]
    assert finished.data.params == {"beta": "0.1", "dpo_text.targets": '["q", "v"]', "dpo_text.flip": "null"}
    assert finished.info.status == "FINISHED"
    assert finished.info.run_name == "dpo_text lurid-oxen"
    tags = finished.data.tags
    assert (tags["kind"], tags["prefdag.runtime.stage"], tags["dvc.exp_name"]) == ("stage", "dpo_text", "lurid-oxen")
    assert tags["dvc.exp_baseline_rev"] == tags["mlflow.source.git.commit"] == "f" * 40
    assert spool.folders() == []


HIVE = {f"lang=en/split=train/part-{i} (1).parquet": "0" * 64 for i in range(3)}


@pytest.mark.slow
def test_names_that_mlflow_refuses_are_rewritten() -> None:
    params = {"source": {"files": HIVE, "": "", "a//b": "x" * 9000}, "k" * 300: 1}
    with tracking.stage_run("download_pairs", params, "refused") as run:
        run.log(0, {"accuracy@1 (%)": 0.5, "accuracy_1 ___": 0.25, "": 1.0, "m" * 260: 2.0})
        run.log(1, {"accuracy@1 (%)": 0.75})
    finished = run_of("refused")
    assert finished.info.status == "FINISHED"
    assert len(finished.data.params) == 6
    for i in range(3):
        assert finished.data.params[f"source.files.lang_en/split_train/part-{i} _1_.parquet"] == "0" * 64
    assert history(finished, "accuracy_1 ___") == [(0, 0.5), (1, 0.75)]
    assert sorted(finished.data.metrics.values()) == [0.25, 0.75, 1.0, 2.0]
    assert tracking.sync() == tracking.SyncResult(0, 0)


@pytest.mark.slow
def test_a_spool_with_refused_names_from_an_earlier_version_is_sent() -> None:
    folder = spool.claim_any("old")
    tags = {"kind": "stage", "prefdag.key": "old spool", "prefdag.spool": "f00d"}
    folder.append({"kind": "start", "time": 1, "name": "n" * 300, "tags": tags, "params": {"files.a=b": "1"}})
    folder.append({"kind": "step", "time": 2, "step": 0, "metrics": {"a?": 1.0}})
    folder.append({"kind": "status", "time": 3, "status": "FINISHED"})
    folder.release()
    assert tracking.sync() == tracking.SyncResult(1, 0)
    sent = run_of("old spool")
    assert (sent.data.params, sent.data.metrics, sent.info.status) == ({"files.a_b": "1"}, {"a_": 1.0}, "FINISHED")


@pytest.mark.slow
def test_names_stay_the_same_when_another_process_sends_the_rest() -> None:
    def killed() -> None:
        with tracking.stage_run("dpo_text", {}, "renamed") as run:
            run.log(0, {"a?": 1.0, "a!": 2.0})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        killed()
    with tracking.stage_run("dpo_text", {}, "renamed") as run:
        run.log(0, {"a?": 1.0, "a!": 2.0})
        run.log(1, {"a!": 4.0})
        run.log(2, {"a?": 3.0})
    finished = run_of("renamed")
    (other,) = set(finished.data.metrics) - {"a_"}
    assert history(finished, "a_") == [(0, 1.0), (2, 3.0)]
    assert history(finished, other) == [(0, 2.0), (1, 4.0)]


def fail(key: str, steps: int, error: type[BaseException] = RuntimeError) -> None:
    """A stage that logs a loss of step / 7 for some steps, then fails."""
    with tracking.stage_run("dpo_text", {"seed": 0}, key) as run:
        for step in range(steps):
            run.log(step, {"loss": step / 7})
        raise error


@pytest.mark.slow
@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_has_the_outcome_of_its_stage(error: type[BaseException], status: str) -> None:
    with pytest.raises(error):
        fail(status, 1, error)
    assert run_of(status).info.status == status


@pytest.mark.slow
def test_a_stage_that_is_run_again_continues_its_run() -> None:
    with pytest.raises(RuntimeError):
        fail("again", 7)
    with tracking.stage_run("dpo_text", {"seed": 0}, "again") as run:
        for step in range(5, 10):  # from the last checkpoint
            run.log(step, {"loss": step / 7, **({"val/loss": 0.25} if step == 6 else {})})
    finished = run_of("again")
    assert history(finished, "loss") == [(step, step / 7) for step in range(10)]
    assert history(finished, "val/loss") == [(6, 0.25)]
    assert finished.info.status == "FINISHED"
    assert spool.folders() == []


def test_two_processes_with_one_key_have_two_runs() -> None:
    with tracking.stage_run("dpo_text", {}, "twice") as first, tracking.stage_run("dpo_text", {}, "twice") as second:
        first.log(0, {"loss": 1.0})
        second.log(0, {"loss": 2.0})
    both = runs("tags.`prefdag.key` = 'twice'")
    assert sorted(run.data.metrics["loss"] for run in both) == [1.0, 2.0]


def test_values_that_are_not_finite_are_named_and_not_replaced() -> None:
    with tracking.stage_run("dpo_text", {}, "nan") as run:
        run.log(0, {"loss": 1.0, "grad_norm": 2.0})
        run.log(1, {"loss": float("inf"), "grad_norm": 3.0})
    finished = run_of("nan")
    assert history(finished, "loss") == [(0, 1.0)]
    assert history(finished, "grad_norm") == [(0, 2.0), (1, 3.0)]
    assert finished.data.tags["prefdag.nonfinite"] == "loss is inf at step 1"


def test_only_the_first_of_several_processes_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with tracking.stage_run("dpo_text", {}, "rank") as run:
        run.log(0, {"loss": 1.0})
        run.file(Path("absent"))
    assert spool.folders() == []


@pytest.mark.slow
def test_large_requests_are_split_to_the_size_that_mlflow_accepts() -> None:
    params = {f"p{i}": i for i in range(250)}
    with tracking.stage_run("dpo_text", params, "large") as run:
        run.log(0, {f"m{i}": i for i in range(2500)})
        for step in range(30):
            run.log(step, {f"n{i}": i for i in range(100)})
    finished = run_of("large")
    assert len(finished.data.params) == 250
    assert finished.data.metrics == {f"m{i}": i for i in range(2500)} | {f"n{i}": i for i in range(100)}
    assert history(finished, "n99") == [(step, 99.0) for step in range(30)]


# --- the pipeline


def pipeline(project: Path) -> dict[str, Any]:
    """The inputs of `publish`, as the stages write them."""
    folder = project / "models" / "dpo_text"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.csv").write_text("step,epoch,loss,rewards/margin\n0,0,0.6931471805599453,0\n1,0,0.25,1.5\n")
    (folder / "validation.csv").write_text("step,loss,kl\n0,0.69,\n1,0.5,1e-05\n")
    (project / "reports").mkdir(exist_ok=True)
    (project / "reports" / "index.html").write_text("<h1>Report</h1>")
    (project / "reports" / "model_card.md").write_text("# Model")
    heldout = {"n_pairs": 64, "rewards": {"accuracy": 0.609375}, "note": "no number", "missing": None}
    return {
        "metrics": {"text": {"heldout": heldout}, "image": {"policy": {"accuracy": 0.95}}},
        "curves": {"dpo_text": (Path("models/dpo_text/history.csv"), Path("models/dpo_text/validation.csv"))},
        "files": [Path("reports/index.html"), Path("reports/model_card.md")],
    }


def check_pipeline(run: Any) -> None:
    assert run.data.tags["kind"] == "pipeline"
    assert run.data.metrics["text/heldout/rewards/accuracy"] == 0.609375
    assert run.data.metrics["text/heldout/n_pairs"] == 64
    assert run.data.metrics["image/policy/accuracy"] == 0.95
    assert not {"text/heldout/note", "text/heldout/missing"} & set(run.data.metrics)
    assert history(run, "dpo_text/loss") == [(0, 0.6931471805599453), (1, 0.25)]
    assert history(run, "dpo_text/rewards/margin") == [(0, 0.0), (1, 1.5)]
    assert history(run, "dpo_text/val/loss") == [(0, 0.69), (1, 0.5)]
    assert history(run, "dpo_text/val/kl") == [(1, 1e-05)]
    client = client_of_database()
    reports = [item.path for item in client.list_artifacts(run.info.run_id, "reports")]
    assert reports == ["reports/index.html", "reports/model_card.md"]
    assert Path(client.download_artifacts(run.info.run_id, "reports/index.html")).read_text() == "<h1>Report</h1>"


@pytest.mark.slow
def test_publish_writes_one_run_with_everything(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "whole-pipe")
    params = load_params(ROOT / "params.yaml")
    publish(flatten(params), **pipeline(project))
    (run,) = runs("tags.`dvc.exp_name` = 'whole-pipe'")
    assert run.info.run_name == f"beta={params.beta} whole-pipe"
    assert run.info.artifact_uri.startswith((project / "mlartifacts").as_uri())
    assert run.data.params["dpo_text.adapter.kind"] == params.dpo_text.adapter.kind
    assert json.loads(run.data.params["health_text.fail_on"]) == params.health_text.fail_on
    assert {key.partition(".")[0] for key in run.data.params} == set(params.__dataclass_fields__)
    check_pipeline(run)


@pytest.mark.slow
def test_the_pipelines_run_lasts_as_long_as_its_stages(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "long-one")
    start = time.time()
    publish(
        flatten(load_params(ROOT / "params.yaml")), **pipeline(project), seconds={"a": 90.5, "b": None, "c": 3600.0}
    )
    (run,) = runs("tags.`dvc.exp_name` = 'long-one'")
    assert 3690.5 <= (run.info.end_time - run.info.start_time) / 1000 < 3690.6 + time.time() - start
    assert abs(run.info.end_time / 1000 - time.time()) < 60
    assert (run.data.metrics["seconds/a"], run.data.metrics["seconds/c"]) == (90.5, 3600)
    assert "seconds/b" not in run.data.metrics
    monkeypatch.setenv("DVC_EXP_NAME", "later-but-longer")  # it starts earlier, and is published later
    publish(flatten(load_params(ROOT / "params.yaml")), **pipeline(project), seconds={"a": 9000.0})
    names = [name.partition(" ")[2] for name, *_ in tracking.pipelines()]
    assert names.index("long-one") < names.index("later-but-longer")


@pytest.mark.slow
def test_the_list_of_runs_shows_the_main_metrics(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow reads the view from a tag of the experiment. Every column is a metric or a parameter of the run."""
    monkeypatch.setenv("DVC_EXP_NAME", "seen")
    interval = {"rewards/accuracies_low": 0.5, "rewards/accuracies": 0.6, "rewards/accuracies_high": 0.7}
    main = {"image": {"kl": 0.5, "accuracy": 0.9}, "text": {"findings": 1, "kl": 0.1, **interval}}
    publish(flatten(load_params(ROOT / "params.yaml")), **pipeline(project), main_metrics=main)
    (run,) = runs("tags.`dvc.exp_name` = 'seen'")
    tags = client_of_database().get_experiment_by_name("prefdag").tags
    shown = json.loads(tags[view.TAG])
    assert shown["selectedColumns"] == [
        *(f"metrics.`{key}`" for key in ("text/rewards/accuracies", "text/kl", "text/findings")),
        *(f"metrics.`{key}`" for key in ("image/accuracy", "image/kl")),
        *(f"params.`{key}`" for key in ("beta", "loss", "seed")),
    ]
    known = {f"metrics.`{key}`" for key in run.data.metrics} | {f"params.`{key}`" for key in run.data.params}
    assert set(shown["selectedColumns"]) <= known
    assert run.data.metrics["text/rewards/accuracies_high"] == 0.7
    address = f"viewStateShareKey={view.TAG.removeprefix('mlflow.sharedViewState.')}"
    assert address in (ROOT / "Makefile").read_text("utf-8")


@pytest.mark.slow
def test_each_round_is_a_step(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "in-rounds")
    table = Path("table.csv")
    table.write_text("round,win_rate,kl_to_reference\n0,,0.4\n1,0.7,2.25\n2,0.6,3.5\n")
    publish(flatten(load_params(ROOT / "params.yaml")), **pipeline(project), rounds=table)
    (run,) = runs("tags.`dvc.exp_name` = 'in-rounds'")
    assert history(run, "rounds/win_rate") == [(1, 0.7), (2, 0.6)]
    assert history(run, "rounds/kl_to_reference") == [(0, 0.4), (1, 2.25), (2, 3.5)]


@pytest.mark.parametrize("content", ["step,loss\n0,one\n", "loss\n0.5\n", "step,loss\n0,0.5,7\n"])
def test_a_malformed_curve_is_one_line(project: Path, content: str) -> None:
    inputs = pipeline(project)
    (project / "models" / "dpo_text" / "history.csv").write_text(content)
    with pytest.raises(DataError, match=r"^models/dpo_text/history.csv:1: not a row of numbers"):
        publish(flatten(load_params(ROOT / "params.yaml")), **inputs)


def test_a_missing_curve_is_one_line(project: Path) -> None:
    curves = {"dpo_text": (Path("absent.csv"), Path("absent.csv"))}
    with pytest.raises(DataError, match=r"^absent.csv: not found; `dvc repro` makes it$"):
        publish(flatten(load_params(ROOT / "params.yaml")), {}, curves, [])


# --- a server that does not answer, and processes that die


@pytest.mark.slow
def test_a_dead_server_causes_warnings_and_sync_sends_everything_once(
    closed_port: str, monkeypatch: pytest.MonkeyPatch, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    requests: list[str] = []
    try_twice = store.Store._try_twice

    def counted(self: store.Store, request: Any, **options: Any) -> Any:
        requests.append(self.name)
        return try_twice(self, request, **options)

    monkeypatch.setattr(store.Store, "_try_twice", counted)
    with tracking.stage_run("dpo_text", {"beta": 0.1}, "dead") as run:
        for step in range(50):
            run.log(step, {"loss": step / 3})
    assert len(requests) == 2  # connecting, which needs no network yet, and one request
    assert tracking.sync() == tracking.SyncResult(sent=0, left=1)
    requests.clear()
    publish(flatten(load_params(ROOT / "params.yaml")), **pipeline(project))
    assert requests == []  # the server is known to be dead
    (project / "reports" / "index.html").write_text("of a later run")
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 3
    assert all("\n" not in warning for warning in warnings)
    assert "secret" not in caplog.text
    assert not any(b"secret" in path.read_bytes() for path in (project / ".prefdag").rglob("*") if path.is_file())

    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # MLflow answers again
    assert tracking.sync() == tracking.SyncResult(sent=2, left=0)
    assert tracking.sync() == tracking.SyncResult(sent=0, left=0)
    finished = run_of("dead")
    assert history(finished, "loss") == [(step, step / 3) for step in range(50)]
    assert finished.info.status == "FINISHED"
    check_pipeline(runs("tags.kind = 'pipeline'")[0])
    assert spool.folders() == []


@pytest.mark.slow
def test_a_server_that_never_answers_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")  # even so, the stage must end
    monkeypatch.setattr(delivery, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with tracking.stage_run("dpo_text", {}, "silent") as run:
            for step in range(50):
                run.log(step, {"loss": 1.0})
        silent.accept()[0].close()  # the server had received a request
    lines = Path(".prefdag/spool/dpo_text-silent/events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["kind"] for event in events] == ["start", *["step"] * 50, "status"]
    join_delivery()


@pytest.mark.slow
def test_a_locked_database_delays_no_stage(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tracking.stage_run("dpo_text", {}, "before"):  # creates the database
        pass
    monkeypatch.setattr(delivery, "PATIENCE", 0.3)
    holder = sqlite3.connect(project / "mlflow.db")
    holder.execute("BEGIN EXCLUSIVE")
    with tracking.stage_run("dpo_text", {}, "locked") as run:
        run.log(0, {"loss": 1.0})
    assert [folder.name for folder in spool.folders()] == ["dpo_text-locked"]
    holder.rollback()
    holder.close()
    join_delivery()  # the daemon thread keeps waiting while its process lives
    assert tracking.sync().left == 0
    assert history(run_of("locked"), "loss") == [(0, 1.0)]


@pytest.mark.slow
def test_a_killed_process_loses_nothing_that_was_logged() -> None:
    process = child("""
        delivery.INTERVAL = 0.2
        with tracking.stage_run("dpo_text", {}, "kill9") as run:
            for step in range(1_000_000):
                run.log(step, {"loss": step / 7})
                time.sleep(0.001)
                if os.path.exists(".prefdag/spool/dpo_text-kill9/sent.json"):
                    print(step, flush=True)
    """)
    assert process.stdout
    logged = [int(process.stdout.readline()) for _ in range(300)][-1]
    assert tracking.sync() == tracking.SyncResult(sent=0, left=0)  # a living process sends its own
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with Path(".prefdag/spool/dpo_text-kill9/events.jsonl").open("a") as stream:
        stream.write('{"kind": "step", "ti')  # incomplete
    assert tracking.sync() == tracking.SyncResult(sent=1, left=0)
    assert tracking.sync() == tracking.SyncResult(sent=0, left=0)
    killed = run_of("kill9")
    points = history(killed, "loss")
    assert points == [(step, step / 7) for step in range(len(points))]
    assert len(points) > logged
    assert killed.info.status == "KILLED"


@pytest.mark.slow
def test_a_full_disk_leaves_no_partial_event(tmp_path: Path) -> None:
    """A file size limit acts like a full disk: the write that does not fit is cut short."""
    process = child(f"""
        import errno, json, resource
        from pathlib import Path
        from prefdag.tracking import spool as spools
        spool = spools.claim(Path({str(tmp_path / "spool")!r}))
        most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most[1]))
        event = {{"kind": "step", "step": 0, "metrics": {{"loss": 0.1}}}}
        fits = 1000 // (len(json.dumps(event)) + 1)
        try:
            while True:
                spool.append(event)
        except OSError as error:
            print(errno.errorcode[error.errno], Path(error.filename).name)
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
        before = len(list(spool.events()))
        spool.append(event)
        print(before == fits, len(list(spool.events())) == before + 1)
    """)
    words = process.communicate()[0].split()
    assert words == ["ENOSPC", "events.jsonl", "True", "True"]


@pytest.mark.slow
def test_unacknowledged_events_are_sent_again_without_duplicates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(spool.Spool, "acknowledge", lambda self, delivered: None)  # as if killed right before it
        with pytest.raises(RuntimeError):
            fail("ambiguous", 20)
    assert tracking.sync() == tracking.SyncResult(sent=1, left=0)
    assert history(run_of("ambiguous"), "loss") == [(step, step / 7) for step in range(20)]


@pytest.mark.slow
def test_a_refused_run_does_not_block_the_others() -> None:
    for key in ("gone", "kept"):
        with pytest.raises(RuntimeError):
            fail(key, 1)
        late = spool.claim(Path(f".prefdag/spool/dpo_text-{key}"))
        assert late
        late.append({"kind": "step", "time": 1, "step": 1, "metrics": {"loss": 2.0}})
        late.append({"kind": "status", "time": 2, "status": "FAILED"})
        late.release()
    client_of_database().delete_run(run_of("gone").info.run_id)
    assert tracking.sync() == tracking.SyncResult(sent=1, left=1)
    assert history(run_of("kept"), "loss") == [(0, 0.0), (1, 2.0)]


@pytest.mark.slow
def test_processes_that_start_together_on_a_new_store_are_all_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    code = """
        with tracking.stage_run("dpo_text", {}, f"together{os.getpid()}") as run:
            run.log(0, {"loss": os.getpid()})
    """
    processes = [child(code) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert sorted(run.data.metrics["loss"] for run in runs("tags.kind = 'stage'")) == sorted(p.pid for p in processes)


@pytest.mark.slow
def test_a_server_that_is_killed_midway(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"

    def serve() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        storage = [
            "--backend-store-uri",
            f"sqlite:///{tmp_path}/server.db",
            "--artifacts-destination",
            str(tmp_path / "a"),
        ]
        process = subprocess.Popen([*command, *storage], start_new_session=True)
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health").close()
                return process
            except OSError:
                time.sleep(0.2)

    monkeypatch.setattr(delivery, "INTERVAL", 0.2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # the other tests share the machine with the server
    server = serve()
    try:
        with tracking.stage_run("dpo_text", {"beta": 0.1}, "midway") as run:
            for step in range(20):
                run.log(step, {"loss": step / 7})
            while not Path(".prefdag/spool/dpo_text-midway/sent.json").exists():
                time.sleep(0.05)
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            for step in range(20, 40):
                run.log(step, {"loss": step / 7})
        publish(flatten(load_params(ROOT / "params.yaml")), **pipeline(project))
        assert tracking.sync() == tracking.SyncResult(sent=0, left=2)
        server = serve()
        assert tracking.sync() == tracking.SyncResult(sent=2, left=0)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/server.db")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/server.db")
    experiment = client.get_experiment_by_name("prefdag")
    assert experiment
    pipeline_run, stage = client.search_runs([experiment.experiment_id], order_by=["tags.kind"])
    assert sorted((p.step, p.value) for p in client.get_metric_history(stage.info.run_id, "loss")) == [
        (step, step / 7) for step in range(40)
    ]
    assert stage.info.status == pipeline_run.info.status == "FINISHED"
    assert len(list((tmp_path / "a").rglob("reports/*"))) == 2


@pytest.mark.slow
def test_importing_tracking_imports_neither_mlflow_nor_torch() -> None:
    process = child("import sys; print(*sorted({'mlflow', 'torch', 'pandas', 'numpy'} & set(sys.modules)))")
    assert process.communicate()[0].strip() == ""


# --- the database of a repository that was moved, killed or written by another MLflow


def database_in(folder: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's database in another repository, which is current from now on."""
    with tracking.stage_run("s", {}, "before the copy"):
        pass
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    return Path(shutil.copy(project / "mlflow.db", folder / "mlflow.db"))


@pytest.mark.slow
def test_a_moved_repository_keeps_its_artifacts(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "a moved one"
    database_in(here, project, monkeypatch)
    Path("reports").mkdir()
    Path("reports/a.txt").write_text("a")
    with tracking.stage_run("s", {}, "after the move") as run:
        run.file(Path("reports/a.txt"))
    for key in ("before the copy", "after the move"):
        assert run_of(key).info.artifact_uri.startswith(f"{here.as_uri()}/mlartifacts/")
    assert len(list(here.glob("mlartifacts/*/artifacts/reports/a.txt"))) == 1
    assert not list(project.glob("mlartifacts/*/artifacts/reports/a.txt"))


@pytest.mark.slow
def test_artifacts_stay_in_a_folder_that_the_user_chose(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: the folder exists, and no database of ours is beside it."""
    database = database_in(tmp_path / "here", project, monkeypatch)
    chosen = tmp_path / "large disk" / "mlartifacts"
    chosen.mkdir(parents=True)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'prefdag'", (chosen.as_uri(),))
    with tracking.stage_run("s", {}, "chosen"):
        pass
    assert run_of("chosen").info.artifact_uri.startswith(chosen.as_uri())


@pytest.mark.slow
def test_another_schema_is_one_line_with_a_remedy(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    database = database_in(tmp_path / "here", project, monkeypatch)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
    with tracking.stage_run("s", {}, "schema"):
        pass
    remedy = f"; copy the database and run `mlflow db upgrade sqlite:///{database}`, or move it away; the run is kept"
    assert remedy in caplog.text
    assert "\n" not in caplog.messages[-1]


@pytest.mark.parametrize("content", [b"not a database" * 999, None], ids=["another file", "a table is missing"])
@pytest.mark.slow
def test_a_damaged_database_is_one_line_with_a_remedy(
    content: bytes | None,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    database = database_in(tmp_path / "here", project, monkeypatch)
    if content:
        database.write_bytes(content)
    else:
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("DROP TABLE experiments")
    with tracking.stage_run("s", {}, "damaged"):
        pass
    assert "; it is damaged: put a copy of it back, or move it away; the run is kept in" in caplog.text
    assert "\n" not in caplog.messages[-1]
    assert [folder.name for folder in spool.folders()] == ["s-damaged"]


def test_a_database_that_is_not_complete_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk or after a kill. MLflow would fail at the tables that it has already, for ever."""
    import mlflow

    def cut_short(uri: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_text("half")
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(mlflow, "MlflowClient", cut_short)
    with pytest.raises(store.OutageError, match="disk is full"):
        store.Store().ask(lambda client: None)
    assert [path.name for path in tmp_path.iterdir()] == [".prefdag"]


@pytest.mark.slow
def test_sync_imports_mlflow_with_our_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else MLflow logs tracebacks, and retries for minutes."""
    for name in store.ENVIRONMENT:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nonexistent/mlflow.db")
    done = child("""
        import logging
        from prefdag.tracking import spool
        left = spool.claim_any("left")
        left.append({"kind": "start", "time": 1, "name": "n", "tags": {"prefdag.spool": "f00d"}, "params": {}})
        left.release()
        assert tracking.sync().left == 1
        print(logging.getLogger("mlflow").level == logging.CRITICAL)
        """).communicate()[0]
    assert done == "True\n"


def test_a_clock_that_is_set_back_does_not_keep_the_server_dead(closed_port: str) -> None:
    current = store.Store()
    current.note_dead()
    assert current.known_dead()
    later = time.time() + 86400  # when the note was written, as the clock said then
    os.utime(store.scratch("unanswered.json"), (later, later))
    assert not current.known_dead()
