"""MLflow as a team runs it (compose.yaml): on PostgreSQL, with artifacts on S3, and with users.

Runs arrive, once, whatever was wrong with the credentials before; the frontier and the registry are read from there.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import buckets
import onnx
import pytest
import team_server
from buckets import Buckets
from clones import Run
from onnx import helper
from team_server import Mlflow

from prefdag.check_params import load_params
from prefdag.export import registry
from prefdag.runtime.artifacts import sha256, write_json
from prefdag.runtime.yaml import flatten
from prefdag.tracking import delivery, store
from prefdag.tracking.publishing import publish

WRONG, EXPIRED = "a-wrong-password", "an-expired-token"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mlflow, Buckets]]:
    for package in ("moto", "psycopg", "flask_wtf"):
        pytest.importorskip(package)
    programs = team_server.postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with buckets.serving() as storage, team_server.postgres(programs) as database:
        for _ in range(2):  # the second time, they are there
            team_server.make_buckets(storage.environment | {"AWS_DEFAULT_REGION": "us-east-1"})
        with team_server.mlflow(tmp_path_factory.mktemp("mlflow"), storage.environment | database) as server:
            yield server, storage


def client_of(server: Mlflow, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's own client, as the administrator."""
    for name, value in (store.ENVIRONMENT | server.environment).items():
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    return MlflowClient(server.address)


def test_runs_arrive_once_after_the_credentials_are_corrected(
    servers: tuple[Mlflow, Buckets], copy: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, storage = servers
    address = {"MLFLOW_TRACKING_URI": server.address}
    wrong = server.environment | {"MLFLOW_TRACKING_PASSWORD": WRONG}
    expired = address | {"MLFLOW_TRACKING_TOKEN": EXPIRED}
    at = f"MLflow at {server.address}:"
    wrong_password = f"{at} wrong user name or password; correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    expired_token = f"{at} the token is unknown or has expired; set MLFLOW_TRACKING_TOKEN to a new one"
    outputs = []

    def says(line: str, *command: str, status: int = 0, **environment: str) -> None:
        done = run(*command, check=False, **environment)
        outputs.append(done.stdout)
        assert line in done.stdout
        assert done.returncode == status
        assert not re.search(r"\b401\b", done.stdout)  # a port or a hash may have these digits
        assert "when it answers" not in done.stdout

    shutil.rmtree(copy / "models/dpo_image")
    kept = "; the run is kept in "
    says(wrong_password + kept, "python", "-m", "stages.dpo_image", **wrong)
    (copy / "reports/published.txt").unlink()
    says(expired_token + kept, "dvc", "repro", "--single-item", "publish", **expired)
    says(wrong_password, "prefdag", "sync", status=1, **wrong)
    says(f"error: {at} it wants to know who asks", "prefdag", "frontier", "--from", "mlflow", status=1, **address)
    assert len(list((copy / ".prefdag/spool").glob("*/events.jsonl"))) == 2

    says("sent 2, left 0\n", "prefdag", "sync", **server.environment)
    says("sent 0, left 0\n", "prefdag", "sync", **server.environment)
    client = client_of(server, monkeypatch)
    experiment = client.get_experiment_by_name("prefdag")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["kind"] for run in runs) == ["pipeline", "stage"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    says("1 experiments: ", "prefdag", "frontier", "--from", "mlflow", **server.environment)
    (pipeline,) = (run for run in runs if run.data.tags["kind"] == "pipeline")
    key = f"{experiment.experiment_id}/{pipeline.info.run_id}/artifacts/reports/metrics.json"
    stored = storage.s3.get_object(Bucket="mlflow", Key=key)["Body"].read()
    assert stored == (copy / "reports/metrics.json").read_bytes()
    secrets = (WRONG, EXPIRED, server.password, storage.secret)
    assert not [secret for secret in secrets if secret in "".join(outputs)]
    assert not [
        path for path in (copy / ".prefdag").rglob("*.json*") for secret in secrets if secret in path.read_text()
    ]


def write_classifier(folder: Path) -> None:
    """An export of a classifier alone: a linear one, of images of 2 × 2 pixels."""
    uint8, float32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["pixels"], to=float32),
        helper.make_node("MatMul", ["pixels", "weights"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", uint8, ["batch", 1, 2, 2])
    logits = helper.make_tensor_value_info("logits", float32, ["batch", 3])
    weights = helper.make_tensor("weights", float32, (4, 3), [0.5] * 12)
    model = helper.make_model(helper.make_graph(nodes, "linear", [images], [logits], [weights]), ir_version=10)
    (folder / "image").mkdir(parents=True)
    onnx.save(model, folder / "image/model.onnx")
    write_json(folder / "image/config.json", {"channels": 1, "height": 2, "width": 2, "classes": 3})
    write_json(folder / "export.json", {"image/model.onnx": sha256(folder / "image/model.onnx")})


def test_a_version_in_the_registry(
    servers: tuple[Mlflow, Buckets], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, storage = servers
    client = client_of(server, monkeypatch)
    for name, value in {"MLFLOW_EXPERIMENT_NAME": "registry", "DVC_ROOT": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    metrics = {"kl": 0.25}
    write_json(tmp_path / "metrics.json", metrics)
    monkeypatch.setattr(delivery, "PATIENCE", delivery.LONGEST)
    monkeypatch.setattr(registry, "METRICS", {"image": tmp_path / "metrics.json"})
    write_classifier(tmp_path / "export")
    publish(flatten(load_params()), {"image": metrics}, {}, [])
    assert list(registry.register(tmp_path / "export", load_params())) == ["prefdag-image version 1"]
    (version,) = client.search_model_versions("name = 'prefdag-image'")
    assert version.tags["kl"] == "0.25"
    assert client.get_run(version.run_id).data.metrics["image/kl"] == 0.25
    keys = [stored["Key"] for stored in storage.s3.list_objects_v2(Bucket="mlflow")["Contents"]]
    assert [key for key in keys if key.endswith("/model.onnx")]
