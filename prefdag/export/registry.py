"""Registers exported models in MLflow's registry, each version linked to the pipeline run that made it. Nothing is pickled.

The language model is logged as "models from code", with chat_model.py and the exported folder; the classifier as ONNX.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefdag.lifecycle.errors import PrefdagError
from prefdag.lifecycle.secrets import without_secrets
from prefdag.runtime.artifacts import project_root, read_json
from prefdag.runtime.yaml import flatten
from prefdag.tracking.keys import parameters
from prefdag.tracking.publishing import numbers
from prefdag.tracking.store import DeliveryError, Store, import_mlflow

if TYPE_CHECKING:
    from prefdag.config.params import Params

NAMES = {"text": "prefdag-text", "image": "prefdag-image"}
METRICS = {track: Path(f"reports/{track}/metrics.json") for track in NAMES}
CODE = Path(__file__).with_name("chat_model.py")
EXAMPLE = {"messages": [{"role": "user", "content": "What is a primary colour?"}], "temperature": 0.0, "max_tokens": 16}
WEIGHTS = {"text": "text/model.safetensors", "image": "image/model.onnx"}
# The metrics that a version has as tags ("*": with the interval). The run has all metrics.
TAGGED_METRICS = {
    "text": ("heldout/n_pairs", "heldout/rewards/accuracy*", "heldout/rewards/margin*", "heldout/kl"),
    "image": ("n_test", "policy/accuracy*", "reference/accuracy*", "kl"),
}
RUN_TAGS = ("dvc.exp_name", "dvc.exp_baseline_rev", "mlflow.source.git.commit", "prefdag.git_dirty")
# Longer timeouts than in a stage: the upload is half a gigabyte, and the user waits for it.
TIMEOUTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}


def register(folder: Path, params: "Params") -> Iterator[str]:
    """Register a new version of each model in the export `folder`. Yields `NAME version N` for each.

    Raises:
        PrefdagError: MLflow has no run of this pipeline, or rejects the models.
    """
    for name, value in TIMEOUTS.items():
        os.environ.setdefault(name, value)
    mlflow = import_mlflow()
    store = Store()
    metrics = {track: numbers(read_json(path)) for track, path in METRICS.items()}
    try:
        run = store.ask(lambda client: find_run(client, params, metrics))
    except DeliveryError as error:
        raise PrefdagError(f"MLflow at {store.name}: {error}") from None
    _check_artifact_location(store, run.info.artifact_uri)
    files = read_json(folder / "export.json")
    mlflow.set_tracking_uri(store.uri)
    client = mlflow.MlflowClient(store.uri)
    try:
        mlflow.start_run(run_id=run.info.run_id)
        try:
            log = {"text": log_text, "image": log_image}
            logged = [(track, log[track](folder / track)) for track in NAMES if WEIGHTS[track] in files]
        finally:  # restore the run's status and end time, also if logging failed
            mlflow.end_run()
            client.set_terminated(run.info.run_id, run.info.status, run.info.end_time)
        for track, info in logged:
            number = info.registered_model_version
            for key, value in tags(track, params, metrics[track], run.data.tags, files).items():
                client.set_model_version_tag(NAMES[track], number, key, value)
            yield f"{NAMES[track]} version {number}"
    except mlflow.exceptions.MlflowException as error:
        raise PrefdagError(f"MLflow at {store.name}: {without_secrets(' '.join(str(error).split()))[:300]}") from None


def find_run(client: Any, params: "Params", metrics: Mapping[str, Mapping[str, float]]) -> Any:
    """The run that made these models: the newest pipeline run with these parameters and metrics.

    Raises:
        PrefdagError: there is none.
    """
    expected_params = parameters(flatten(params))
    expected = {f"{track}/{key}": value for track, values in metrics.items() for key, value in values.items()}
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    token = None
    while True:
        page = client.search_runs(
            ids, "tags.kind = 'pipeline'", order_by=["attributes.end_time DESC"], page_token=token
        )
        for run in page:
            same_metrics = all(run.data.metrics.get(key) == value for key, value in expected.items())
            if run.data.params == expected_params and same_metrics:
                return run
        token = page.token
        if not token:
            raise PrefdagError(
                "MLflow has no run of this pipeline with these parameters and metrics; "
                "run `prefdag sync`, or `dvc repro -fs publish`"
            )


def _check_artifact_location(store: Store, artifacts: str) -> None:
    """Check that a store in this repository keeps its artifacts here. In a copy, their absolute path does not."""
    root = project_root()
    if store.uri == f"sqlite:///{root}/mlflow.db" and not artifacts.startswith(f"{root.as_uri()}/"):
        raise PrefdagError(
            "mlflow.db: its artifacts are in another folder, since the repository was moved or copied; "
            "set MLFLOW_TRACKING_URI to a new store, and run `dvc repro -fs publish` first"
        )


def tags(
    track: str,
    params: "Params",
    metrics: Mapping[str, float],
    run_tags: Mapping[str, str],
    files: Mapping[str, str],
) -> dict[str, str]:
    """The tags of a version: parameters, source, weights, and its main metrics with n and intervals."""
    flat = json.dumps(flatten(params), sort_keys=True)
    shown = {
        key: value
        for pattern in TAGGED_METRICS[track]
        for key, value in metrics.items()
        if key in {pattern.removesuffix("*") + end for end in ("", *(("_low", "_high") if pattern[-1] == "*" else ()))}
    }
    return {
        "prefdag.params_sha256": hashlib.sha256(flat.encode()).hexdigest(),
        "prefdag.weights_sha256": files[WEIGHTS[track]],
        "prefdag.beta": str(params.beta),
        "prefdag.loss": json.dumps(params.loss) if isinstance(params.loss, dict) else str(params.loss),
        "prefdag.seed": str(params.seed),
        **{key: run_tags[key] for key in RUN_TAGS if key in run_tags},
        **{key: f"{value:.6g}" for key, value in shown.items()},
    }


def log_text(folder: Path) -> Any:
    """Log the exported language model in `folder` to the active run, and register it. Returns MLflow's `ModelInfo`."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.llm import CHAT_MODEL_OUTPUT_SCHEMA
    from mlflow.types.schema import Array, Object, Property

    message = Object([Property(name, DataType.string) for name in ("role", "content")])
    options: dict[str, Any] = {"temperature": DataType.double, "top_p": DataType.double, "top_k": DataType.long}
    options |= {"max_tokens": DataType.long, "stop": Array(DataType.string)}
    request = [ColSpec(kind, name, required=False) for name, kind in options.items()]
    return mlflow.pyfunc.log_model(
        name=NAMES["text"],
        python_model=str(CODE),
        artifacts={"model": str(folder)},
        signature=ModelSignature(Schema([ColSpec(Array(message), "messages"), *request]), CHAT_MODEL_OUTPUT_SCHEMA),
        input_example=EXAMPLE,
        pip_requirements=_pinned("mlflow", "torch", "transformers"),
        registered_model_name=NAMES["text"],
    )


def log_image(folder: Path) -> Any:
    """Log the exported classifier in `folder` to the active run, and register it. Returns MLflow's `ModelInfo`."""
    import mlflow.onnx
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    config = read_json(folder / "config.json")
    shape = (config["channels"], config["height"], config["width"])
    pixels = TensorSpec(np.dtype(np.uint8), (-1, *shape), "images")
    logits = TensorSpec(np.dtype(np.float32), (-1, config["classes"]), "logits")
    ramp = (np.arange(np.prod(shape)) % 256).astype(np.uint8).reshape(1, *shape)  # synthetic, so that no data leaks
    return mlflow.onnx.log_model(
        onnx.load(folder / "model.onnx"),
        name=NAMES["image"],
        signature=ModelSignature(Schema([pixels]), Schema([logits])),
        input_example={"images": ramp},
        save_as_external_data=False,
        pip_requirements=_pinned("mlflow", "onnx", "onnxruntime"),
        registered_model_name=NAMES["image"],
    )


def _pinned(*packages: str) -> list[str]:
    """Requirements pinned to the installed versions. Without them, MLflow starts a process to infer them."""
    return [f"{package}=={version(package).partition('+')[0]}" for package in packages]
