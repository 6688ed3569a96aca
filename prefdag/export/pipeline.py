"""`prefdag export`: writes all models to one folder, which takes its place only after each was read back and compared."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prefdag.export import folder as folders
from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json, sha256, write_json, writing
from prefdag.runtime.dvc_files import DAG, LOCK, names, read_dag, read_lock
from prefdag.runtime.yaml import read_yaml

if TYPE_CHECKING:
    from prefdag.config.params import Params

REFERENCE = Path("models/reference")
POLICY = Path("models/policy")
CLASSIFIER = Path("models/dpo_image")
PAIRS = Path("data/pairs")
DIALOGUES = Path("data/validated/pairs.parquet")
IMAGES = Path("data/validated/images")
IMAGE_PAIRS = Path("data/image_pairs")
IMAGE_METRICS = Path("reports/image/metrics.json")
CARD = Path("reports/model_card.md")
INPUTS = (REFERENCE, POLICY, CLASSIFIER, PAIRS, DIALOGUES, IMAGES, IMAGE_PAIRS, IMAGE_METRICS, CARD)
LICENCE = Path("LICENSE")
WEIGHTS = "model.safetensors"
TEXT, ADAPTER, IMAGE = "text", "text_adapter", "image"
N_IMAGES = 64  # test images to compare on


def export(target: Path, params: "Params", echo: Callable[[str], None]) -> None:
    """Write the folder `target`: text, text_adapter, image, and export.json with the SHA-256 of every file.

    An earlier export in `target` is replaced only if everything succeeds. `INPUTS` exist: `recorded.check_recorded` says so.

    Args:
        echo: prints one line per part: its deviation from the pipeline's own model, or why it was not exported.

    Raises:
        DataError: `target` holds anything but an earlier export (see `folder`), or params.yaml has changed since.
        PrefdagError: a part that was read back differs from the pipeline's model.
    """
    place = folders.check_place(target, outs())
    check_current(LOCK, Path("params.yaml"))
    with writing(place, clear=folders.clear) as folder:
        folder.mkdir()
        _text(folder, params, echo)
        _image(folder, params, echo)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        write_json(folder / folders.FILES, {path.relative_to(folder).as_posix(): sha256(path) for path in files})
        folders.note(folder)


def outs() -> list[Path]:
    """The outputs of all stages in dvc.yaml; none if there is no dvc.yaml."""
    stages = read_dag().values() if DAG.exists() else ()
    return [Path(name) for stage in stages for name in names(stage, "outs", "metrics", "plots")]


def check_current(lock: Path, params: Path) -> None:
    """Check that all outputs were made with the current parameters. Otherwise, cards would name values that were not used.

    Raises:
        DataError: a value differs from the one in dvc.lock, or there is no dvc.lock.
    """
    if not lock.exists():
        raise DataError(f"{lock}: not found; run `dvc repro` first")
    current = read_yaml(params)
    for stage, entry in read_lock(lock).items():
        for key, value in (entry.get("params") or {}).get(params.name, {}).items():
            if current.get(key) != value:
                raise DataError(f"{params}: {key} has changed since {stage} ran; run `dvc repro` first")


def _text(target: Path, params: "Params", echo: Callable[[str], None]) -> None:
    """The whole policy and its adapter alone, if it has one. A prefix gives no whole model."""
    from prefdag.export import cards, text
    from prefdag.report.page.card import model_licence
    from prefdag.text.model import ADAPTER_CONFIG, load_models
    from prefdag.tokenizer.tokenizer import ChatTokenizer

    card = CARD.read_text("utf-8")
    heldout = text.read_heldout(PAIRS, DIALOGUES)
    policy = load_models(REFERENCE, POLICY, packed=False).policy
    tokenizer = ChatTokenizer(REFERENCE, params.format_pairs.template, params.format_pairs.template_options)
    expected, merged = text.logits(policy, heldout.ids), text.merge(policy)
    if merged is None:
        echo(f"{TEXT}: not exported, since a prefix cannot be merged into weights; use {ADAPTER}")
    else:
        folder = target / TEXT
        text.write_merged(merged, REFERENCE, tokenizer, folder)
        text.check_template(folder, tokenizer, heldout.dialogues)
        echo(f"{TEXT}: {text.check_merged(folder, merged, expected, heldout.ids)}")
        (folder / "README.md").write_text(cards.policy_card(card, params), "utf-8")
        if model_licence(params.download_model) == "apache-2.0":
            shutil.copyfile(LICENCE, folder / "LICENSE")
    if not (POLICY / ADAPTER_CONFIG).exists():
        echo(f"{ADAPTER}: not exported, since full fine-tuning has no adapter")
        return
    folder = target / ADAPTER
    folder.mkdir()
    reference = cards.AdapterBase.of(params, sha256(REFERENCE / WEIGHTS))
    shutil.copyfile(POLICY / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = read_json(POLICY / ADAPTER_CONFIG)
    # Here it is a path in this project, which elsewhere would be the id of somebody's repository on the hub.
    config |= {"base_model_name_or_path": reference.name, "revision": reference.revision}
    write_json(folder / ADAPTER_CONFIG, config)
    base = REFERENCE
    if not reference.revision:  # it is not on the hub, so it goes along
        base = folder / "reference"
        text.write_merged(text.plain(REFERENCE), REFERENCE, tokenizer, base)
        shutil.copyfile(REFERENCE / WEIGHTS, base / WEIGHTS)
    echo(f"{ADAPTER}: {text.check_adapter(folder, base, expected, heldout.ids)}")
    (folder / "README.md").write_text(cards.adapter_card(card, params, reference), "utf-8")


def _image(target: Path, params: "Params", echo: Callable[[str], None]) -> None:
    """The classifier in both forms."""
    from prefdag.export import cards, image
    from prefdag.image.data import load_splits
    from prefdag.image.model import load

    model, architecture = load(CLASSIFIER)
    images = load_splits(IMAGES, IMAGE_PAIRS)["test"].images[:N_IMAGES]
    folder = target / IMAGE
    folder.mkdir()
    image.write_image(model, architecture, [str(name) for name in read_json(IMAGES / "classes.json")], images, folder)
    for name, deviation in image.check_image(folder, model, images).items():
        echo(f"{IMAGE}/{name}: {deviation}")
    card = cards.image_card(read_json(IMAGE_METRICS), read_json(folder / "config.json"), params)
    (folder / "README.md").write_text(card, "utf-8")
