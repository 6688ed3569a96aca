"""Versions in MLflow's registry contain no pickle, have complete tags, and give the answers of the pipeline's models."""

import json
import pickletools
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dialogues import user
from export_project import random_images, write_project
from naive_answers import continuation
from typer.testing import CliRunner

from prefdag.check_params import load_params
from prefdag.cli import app
from prefdag.export import registry
from prefdag.image import model as resnet
from prefdag.image.data import normalise
from prefdag.lifecycle.errors import PrefdagError
from prefdag.runtime.artifacts import read_json, sha256
from prefdag.runtime.yaml import flatten
from prefdag.text.model import load_models
from prefdag.tokenizer.tokenizer import ChatTokenizer
from prefdag.tracking import store
from prefdag.tracking.publishing import publish

# The second has a control token, which stays text when a user types it.
QUESTIONS = ["hi", "him <|im_end|>", "a é"]
TOKENS = 12


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Path:
    """A tiny pipeline whose run is in MLflow."""
    root = write_project(tmp_path_factory.mktemp("registry") / "project")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT"):
        patch.delenv(name, raising=False)
    for name, value in store.ENVIRONMENT.items():
        patch.setenv(name, value)
    patch.setenv("DVC_EXP_NAME", "lofty-loon")
    patch.chdir(root)
    metrics = {track: read_json(path) for track, path in registry.METRICS.items()}
    publish(flatten(load_params()), metrics, {}, [])
    metrics["image"]["policy"]["accuracy"] = 0.25  # a later run with other models
    publish(flatten(load_params()), metrics, {}, [])
    return root


@pytest.fixture(scope="module")
def registered(project: Path) -> Path:
    done = CliRunner().invoke(app, ["export", "--register"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-2:] == ["registered prefdag-text version 1", "registered prefdag-image version 1"]
    return project


@pytest.fixture(scope="module")
def client(registered: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{registered}/mlflow.db")


@pytest.fixture(scope="module")
def folders(registered: Path, client: Any) -> dict[str, Path]:
    """The folder of each model in MLflow's store."""
    uris = {name: client.get_model_version_download_uri(f"prefdag-{name}", "1") for name in ("text", "image")}
    from mlflow.artifacts import download_artifacts

    return {name: Path(download_artifacts(uri, tracking_uri=client.tracking_uri)) for name, uri in uris.items()}


def pickled(file: Path) -> bool:
    """Whether a file is a pickle or an archive made by torch.save, judged by its content, not its name."""
    content = file.read_bytes()
    if content[:2] == b"PK":
        return True
    try:
        return sum(1 for _ in pickletools.genops(content)) > 1
    except Exception:
        return False


def test_a_pickle_would_be_detected(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "a.json").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "old").write_bytes(pickle.dumps([1], protocol=0))
    torch.save({"a": torch.zeros(2)}, tmp_path / "b.safetensors")
    (tmp_path / "c.json").write_text("{}")
    assert [pickled(tmp_path / name) for name in ("a.json", "old", "b.safetensors", "c.json")] == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.slow
def test_no_registered_file_is_a_pickle(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert any(path.suffix in (".safetensors", ".onnx") for path in files)
        assert not [path for path in files if pickled(path) or path.suffix in (".pkl", ".pt", ".pth", ".bin")]


@pytest.mark.slow
def test_models_have_a_signature_and_an_input_example(folders: dict[str, Path]) -> None:
    from mlflow.models import Model

    for name, (inputs, outputs) in {"text": ("messages", "choices"), "image": ("images", "logits")}.items():
        model = Model.load(str(folders[name]))
        assert model.signature is not None
        assert inputs in model.signature.inputs.input_names()
        assert outputs in model.signature.outputs.input_names()
        assert model.saved_input_example_info is not None
    example = json.loads((folders["text"] / "input_example.json").read_text())
    assert example["messages"][0]["role"] == "user"


@pytest.mark.slow
def test_a_version_has_tags_that_describe_it(registered: Path, client: Any) -> None:
    metrics = read_json(registry.METRICS["text"])["heldout"]
    text, image = (client.get_model_version(f"prefdag-{name}", "1") for name in ("text", "image"))
    assert text.run_id == image.run_id
    run = client.get_run(text.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["image/policy/accuracy"] != 0.25  # not the later run
    for version, file in ((text, "text/model.safetensors"), (image, "image/model.onnx")):
        assert version.tags["prefdag.weights_sha256"] == sha256(registered / "export" / file)
        assert (version.tags["prefdag.beta"], version.tags["prefdag.loss"]) == ("0.1", "sigmoid")
        assert version.tags["dvc.exp_name"] == "lofty-loon"
        assert len(version.tags["prefdag.params_sha256"]) == 64
    assert float(text.tags["heldout/rewards/accuracy"]) == pytest.approx(metrics["rewards"]["accuracy"], rel=1e-5)
    assert float(text.tags["heldout/rewards/accuracy_low"]) < float(text.tags["heldout/rewards/accuracy_high"])
    assert text.tags["heldout/n_pairs"] == str(metrics["n_pairs"])
    assert "policy/accuracy_low" in image.tags
    assert "policy/accuracy" not in text.tags


def answer(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    import mlflow

    completion: dict[str, Any] = mlflow.pyfunc.load_model(str(folder)).predict(request)
    return completion


def greedy(question: str) -> tuple[str, int]:
    """The policy's own answer, and the number of tokens in the prompt."""
    models = load_models(Path("models/reference"), Path("models/policy"), packed=False)
    tokenizer = ChatTokenizer(Path("models/reference"), "chat")
    prompt = tokenizer.prompt(user(question)).ids
    ids = continuation(models.policy, prompt, TOKENS, tokenizer.eos_id)
    return tokenizer.decode(ids), len(prompt)


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_registered_model_answers_as_the_policy(question: str, folders: dict[str, Path]) -> None:
    completion = answer({"messages": user(question), "max_tokens": TOKENS}, folders["text"])
    expected, tokens = greedy(question)
    assert completion["choices"][0]["message"] == {"role": "assistant", "content": expected}
    assert completion["usage"]["prompt_tokens"] == tokens
    assert completion["choices"][0]["finish_reason"] in ("stop", "length")
    assert completion["object"] == "chat.completion"


@pytest.mark.slow
def test_a_request_may_have_options(folders: dict[str, Path]) -> None:
    uncut = answer({"messages": user("hi"), "max_tokens": TOKENS}, folders["text"])["choices"][0]
    text = uncut["message"]["content"]
    stop = text[len(text) // 2]
    cut = answer({"messages": user("hi"), "max_tokens": TOKENS, "stop": [stop]}, folders["text"])["choices"][0]
    assert cut == {
        "index": 0,
        "message": {"role": "assistant", "content": text.partition(stop)[0]},
        "finish_reason": "stop",
    }
    short = answer({"messages": user("hi"), "max_tokens": 2}, folders["text"])
    assert (short["choices"][0]["finish_reason"], short["usage"]["completion_tokens"]) == ("length", 2)
    torch.manual_seed(0)
    warm = {
        answer({"messages": user("hi"), "temperature": 2.0, "max_tokens": 8}, folders["text"])["choices"][0]["message"][
            "content"
        ]
        for _ in range(3)
    }
    assert len(warm) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"messages": user("x" * 200)}, "messages: .* tokens, but the model.s context is 128"),
        ({"messages": user("x"), "max_tokens": 0}, "max_tokens: 0"),
        ({"messages": user("x"), "max_tokens": "many"}, "max_tokens|schema"),
        ({"prompt": "x"}, "messages"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(
    request_: dict[str, Any], message: str, folders: dict[str, Path]
) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=message):
        answer(request_, folders["text"])


@pytest.mark.slow
def test_the_registered_classifier_gives_the_policys_logits(folders: dict[str, Path]) -> None:
    import mlflow

    images = random_images(5)
    model, _ = resnet.load(Path("models/dpo_image"))
    with torch.no_grad():
        expected = model(normalise(images)).numpy()
    logits = mlflow.pyfunc.load_model(str(folders["image"])).predict({"images": images.numpy()})["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_models_without_a_run_are_not_registered(
    registered: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    metrics = read_json(registry.METRICS["image"])
    metrics["policy"]["accuracy"] = 0.5
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    monkeypatch.setattr(registry, "METRICS", registry.METRICS | {"image": tmp_path / "metrics.json"})
    with pytest.raises(PrefdagError, match="MLflow has no run of this pipeline with these parameters and metrics"):
        list(registry.register(Path("export"), load_params()))


@pytest.mark.slow
def test_artifacts_in_another_repository_are_not_added_to(
    registered: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # set by MLflow's `set_tracking_uri`
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(copy))
    (copy / "mlflow.db").write_bytes((registered / "mlflow.db").read_bytes())
    (tmp_path / "other" / "mlartifacts").mkdir(parents=True)  # of a repository whose database is gone
    with closing(sqlite3.connect(copy / "mlflow.db")) as connection, connection:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            names = (registered.as_uri(), (tmp_path / "other").as_uri())
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", names)
    with pytest.raises(PrefdagError, match=r"mlflow\.db: its artifacts are in another folder"):
        list(registry.register(Path("export"), load_params()))


@pytest.mark.slow
def test_an_interrupted_registration_leaves_the_run_finished(
    registered: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = client.get_run(client.get_model_version("prefdag-text", "1").run_id)

    def fail(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "log_text", fail)
    with pytest.raises(KeyboardInterrupt):
        list(registry.register(Path("export"), load_params()))
    again = client.get_run(run.info.run_id)
    assert (again.info.status, again.info.end_time) == ("FINISHED", run.info.end_time)


@pytest.mark.slow
def test_a_dead_server_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_project(tmp_path / "project"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(PrefdagError, match=r"MLflow at http://127\.0\.0\.1:9: ") as caught:
        list(registry.register(Path("export"), load_params()))
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_the_run_is_the_newest_with_these_parameters_and_metrics(root: Path) -> None:
    params = load_params(root / "params.yaml")
    flat = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(params).items()}

    def run(params: dict[str, str], metrics: dict[str, float]) -> Any:
        return SimpleNamespace(data=SimpleNamespace(params=params, metrics=metrics))

    class Pages(list[Any]):
        token: str | None = None

    newest, older = (run(flat, {"text/n": 1.0, "image/n": 2.0, "seconds/report": seconds}) for seconds in (3.0, 4.0))
    first = Pages([run(flat, {"text/n": 1.0, "image/n": 9.0}), run(flat | {"beta": "9"}, newest.data.metrics)])
    first.token = "next"
    pages = {None: first, "next": Pages([newest, older])}
    client = SimpleNamespace(
        search_experiments=lambda: [SimpleNamespace(experiment_id="1")],
        search_runs=lambda ids, query, order_by, page_token: pages[page_token],
    )
    metrics = {"text": {"n": 1.0}, "image": {"n": 2.0}}
    assert registry.find_run(client, params, metrics) is newest
    with pytest.raises(PrefdagError, match="MLflow has no run of this pipeline"):
        registry.find_run(client, params, {"text": {"n": 1.5}})


@pytest.mark.slow
def test_mlflow_serves_the_policys_answers(registered: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        "models:/prefdag-text/1",
        "--env-manager",
        "local",
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    log = registered / "serve.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port)], stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5)
                break
            except OSError:
                time.sleep(1)
        for question in QUESTIONS:
            completion = post(
                f"{address}/invocations", {"messages": user(question), "max_tokens": TOKENS, "temperature": 0}
            )
            assert completion["choices"][0]["message"]["content"] == greedy(question)[0]
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"{address}/invocations", {"messages": user("x" * 200)})
        assert refused.value.code == 400
        assert "the model's context is 128" in refused.value.read().decode()
    finally:
        stop(server)


def post(url: str, request: dict[str, Any]) -> Any:
    body = urllib.request.Request(url, json.dumps(request).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(body, timeout=120) as response:
        return json.load(response)


def stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server and the processes that it started."""
    import psutil

    for child in [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]:
        child.terminate()
    server.wait(30)
