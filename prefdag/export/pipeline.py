"""Everything that leaves the pipeline, in one folder: written, read back, compared, and only then put in place."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prefdag.runtime.artifacts import read_json, sha256, write_json, writing
from prefdag.runtime.errors import DataError
from prefdag.runtime.yaml import read_yaml

if TYPE_CHECKING:
    from prefdag.config.params import Params

REFERENCE = Path("models/reference")
POLICY = Path("models/dpo_text")
CLASSIFIER = Path("models/dpo_image")
PAIRS = Path("data/pairs")
DIALOGUES = Path("data/validated/pairs.parquet")
IMAGES = Path("data/validated/images")
IMAGE_PAIRS = Path("data/image_pairs")
IMAGE_METRICS = Path("reports/image/metrics.json")
CARD = Path("reports/model_card.md")
LICENCE = Path("LICENSE")
LOCK = Path("dvc.lock")
TEXT, ADAPTER, IMAGE, FILES = "text", "text_adapter", "image", "export.json"
N_IMAGES = 64  # test images to compare on


def export(target: Path, params: "Params", say: Callable[[str], None]) -> None:
    """Write the folder `target` anew: text, text_adapter, image, and export.json with the SHA-256 of every file.

    Args:
        say: takes a line on each part: how far it lies from the pipeline's own model, or why it is not there.

    Raises:
        DataError: `target` is there and not an export, a stage's output is absent, or params.yaml is not what made it.
        PrefdagError: a part, read back, is not the pipeline's model. What stood in `target` stands there still.
    """
    if target.exists() and not (target / FILES).is_file():
        raise DataError(f"{target}: is there, and no export; choose another folder, or remove it")
    for path in (REFERENCE, POLICY, CLASSIFIER, PAIRS, DIALOGUES, IMAGES, IMAGE_PAIRS, IMAGE_METRICS, CARD):
        if not path.exists():
            raise DataError(f"{path}: not found; run `dvc repro` first")
    check_current(LOCK, Path("params.yaml"))
    with writing(target) as folder:
        folder.mkdir()
        _text(folder, params, say)
        _image(folder, params, say)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        write_json(folder / FILES, {path.relative_to(folder).as_posix(): sha256(path) for path in files})


def check_current(lock: Path, params: Path) -> None:
    """That every stage's outputs were made with the parameters as they are now: a template or beta of today would lie.

    Raises:
        DataError: a value differs from the one in dvc.lock, or there is no dvc.lock.
    """
    if not lock.exists():
        raise DataError(f"{lock}: not found; run `dvc repro` first")
    now = read_yaml(params)
    for stage, entry in read_yaml(lock)["stages"].items():
        for key, value in entry.get("params", {}).get(params.name, {}).items():
            if now.get(key) != value:
                raise DataError(f"{params}: {key} is not what {stage} ran with; run `dvc repro` first")


def _text(target: Path, params: "Params", say: Callable[[str], None]) -> None:
    """The policy whole and its adapter alone, each where there is one."""
    from prefdag.export import cards, text
    from prefdag.pairs.tokenizer import ChatTokenizer
    from prefdag.report.page.card import licence
    from prefdag.text.model import ADAPTER_CONFIG, load_models

    template, card = params.format_pairs.template, CARD.read_text("utf-8")
    held = text.read_heldout(PAIRS, DIALOGUES)
    policy = load_models(REFERENCE, POLICY, packed=False).policy
    expected, merged = text.logits(policy, held.ids), text.merge(policy)
    if merged is None:
        say(f"{TEXT}: not exported, a prefix cannot be merged into weights; {ADAPTER} needs {REFERENCE} beside it")
    else:
        folder = target / TEXT
        text.write_merged(merged, REFERENCE, template, folder)
        text.check_template(folder, ChatTokenizer(REFERENCE, template), held.dialogues)
        say(f"{TEXT}: {text.check_merged(folder, merged, expected, held.ids)}")
        (folder / "README.md").write_text(cards.whole(card, params.dpo_text.adapter.kind), "utf-8")
        if licence(params.download_model.source) == "apache-2.0":
            shutil.copyfile(LICENCE, folder / "LICENSE")
    if not (POLICY / ADAPTER_CONFIG).exists():
        say(f"{ADAPTER}: not exported, every weight was trained; there is no adapter")
        return
    folder = target / ADAPTER
    folder.mkdir()
    for name in (ADAPTER_CONFIG, "adapter_model.safetensors"):
        shutil.copyfile(POLICY / name, folder / name)
    say(f"{ADAPTER}: {text.check_adapter(folder, REFERENCE, expected, held.ids)}")
    digest = sha256(REFERENCE / "model.safetensors")
    (folder / "README.md").write_text(cards.adapter(card, REFERENCE, digest, ADAPTER), "utf-8")


def _image(target: Path, params: "Params", say: Callable[[str], None]) -> None:
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
        say(f"{IMAGE}/{name}: {deviation}")
    card = cards.image(read_json(IMAGE_METRICS), read_json(folder / "config.json"), params)
    (folder / "README.md").write_text(card, "utf-8")
