"""Exported models as versions in MLflow's registry, each beside the pipeline run that made it. Nothing is pickled.

The language model is "models from code": chat_model.py and the exported folder; the classifier is its ONNX graph.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefdag.runtime.artifacts import project_root, read_json
from prefdag.runtime.errors import PrefdagError
from prefdag.runtime.yaml import flatten
from prefdag.tracking.publishing import numbers
from prefdag.tracking.store import DeliveryError, Store, import_mlflow

if TYPE_CHECKING:
    from prefdag.config.params import Params

NAMES = {"text": "prefdag-text", "image": "prefdag-image"}
METRICS = {track: Path(f"reports/{track}/metrics.json") for track in NAMES}
CODE = Path(__file__).with_name("chat_model.py")
EXAMPLE = {"messages": [{"role": "user", "content": "What is a primary colour?"}], "temperature": 0.0, "max_tokens": 16}
WEIGHTS = {"text": "text/model.safetensors", "image": "image/model.onnx"}
# Of the metrics of a track, what a version shows of itself; all of them are the run's.
SHOWN = {
    "text": ("heldout/n_pairs", "heldout/rewards/accuracy*", "heldout/rewards/margin*", "heldout/kl"),
    "image": ("n_test", "policy/accuracy*", "reference/accuracy*", "kl"),
}
TAGS_OF_RUN = ("dvc.exp_name", "dvc.exp_baseline_rev", "mlflow.source.git.commit", "prefdag.git_dirty")
# Half a gigabyte goes over the line here, and somebody waits for it: more patience than a stage has.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}


def register(folder: Path, params: "Params") -> Iterator[str]:
    """Make a version of each model in the export `folder`; yield `NAME version N`.

    Raises:
        PrefdagError: MLflow has no run of this pipeline, or does not take the models.
    """
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    mlflow = import_mlflow()
    store = Store()
    metrics = {track: numbers(read_json(path)) for track, path in METRICS.items()}
    try:
        run = store.ask(lambda client: find_run(client, params, metrics))
    except DeliveryError as error:
        raise PrefdagError(f"MLflow at {store.name}: {error}") from None
    _check_place(store, run.info.artifact_uri)
    files = read_json(folder / "export.json")
    mlflow.set_tracking_uri(store.uri)
    client = mlflow.MlflowClient(store.uri)
    try:
        mlflow.start_run(run_id=run.info.run_id)
        try:
            log = {"text": log_text, "image": log_image}
            made = [(track, log[track](folder / track)) for track in NAMES if WEIGHTS[track] in files]
        finally:  # the run is over, as it was before, whatever becomes of the models
            mlflow.end_run()
            client.set_terminated(run.info.run_id, run.info.status, run.info.end_time)
        for track, info in made:
            number = info.registered_model_version
            for key, value in tags(track, params, metrics[track], run.data.tags, files).items():
                client.set_model_version_tag(NAMES[track], number, key, value)
            yield f"{NAMES[track]} version {number}"
    except mlflow.exceptions.MlflowException as error:
        raise PrefdagError(f"MLflow at {store.name}: {' '.join(str(error).split())[:300]}") from None


def find_run(client: Any, params: "Params", metrics: Mapping[str, Mapping[str, float]]) -> Any:
    """The newest run of the pipeline with these parameters and all these metrics: the one that made these models.

    Raises:
        PrefdagError: there is none.
    """
    wanted = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(params).items()}
    figures = {f"{track}/{key}": value for track, values in metrics.items() for key, value in values.items()}
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    token = None
    while True:
        page = client.search_runs(
            ids, "tags.kind = 'pipeline'", order_by=["attributes.start_time DESC"], page_token=token
        )
        for run in page:
            if run.data.params == wanted and all(run.data.metrics.get(key) == value for key, value in figures.items()):
                return run
        token = page.token
        if not token:
            raise PrefdagError(
                "MLflow has no run of this pipeline with these parameters and metrics; "
                "run `prefdag sync`, or `dvc repro -fs publish`"
            )


def _check_place(store: Store, artifacts: str) -> None:
    """That the store in this repository keeps its artifacts here, too: their address is absolute, so a copy's are elsewhere."""
    root = project_root()
    if store.uri == f"sqlite:///{root}/mlflow.db" and not artifacts.startswith(f"{root.as_uri()}/"):
        raise PrefdagError(
            "mlflow.db: its artifacts go to another folder, since the repository was moved or copied; "
            "point MLFLOW_TRACKING_URI to a new store, and run `dvc repro -fs publish` first"
        )


def tags(
    track: str,
    params: "Params",
    metrics: Mapping[str, float],
    of_run: Mapping[str, str],
    files: Mapping[str, str],
) -> dict[str, str]:
    """What a version says of itself: parameters, source, weights, and its main figures with n and interval."""
    flat = json.dumps(flatten(params), sort_keys=True)
    shown = {
        key: value
        for pattern in SHOWN[track]
        for key, value in metrics.items()
        if key in {pattern.removesuffix("*") + end for end in ("", *(("_low", "_high") if pattern[-1] == "*" else ()))}
    }
    return {
        "prefdag.params_sha256": hashlib.sha256(flat.encode()).hexdigest(),
        "prefdag.weights_sha256": files[WEIGHTS[track]],
        "prefdag.beta": str(params.beta),
        "prefdag.loss": json.dumps(params.loss) if isinstance(params.loss, dict) else str(params.loss),
        "prefdag.seed": str(params.seed),
        **{key: of_run[key] for key in TAGS_OF_RUN if key in of_run},
        **{key: f"{value:.6g}" for key, value in shown.items()},
    }


def log_text(folder: Path) -> Any:
    """Log the language model that `export` wrote to `folder` to the active run, and register it; MLflow's `ModelInfo`."""
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
    """Log the classifier that `export` wrote to `folder` to the active run, and register it; MLflow's `ModelInfo`."""
    import mlflow.onnx
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    config = read_json(folder / "config.json")
    shape = (config["channels"], config["height"], config["width"])
    pixels = TensorSpec(np.dtype(np.uint8), (-1, *shape), "images")
    logits = TensorSpec(np.dtype(np.float32), (-1, config["classes"]), "logits")
    ramp = (np.arange(np.prod(shape)) % 256).astype(np.uint8).reshape(1, *shape)  # no image of anybody's data
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
    """Requirements at the versions of this environment. Left to itself, MLflow starts a process to find out."""
    return [f"{package}=={version(package).partition('+')[0]}" for package in packages]
