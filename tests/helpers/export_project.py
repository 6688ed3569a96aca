"""A repository with a tiny trained pipeline, for `prefdag export` to read."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from dialogues import CHATML, user, write_byte_tokenizer
from dvc_lock import write_lock
from paths import ROOT
from report_inputs import write_inputs
from ruamel.yaml import YAML
from safetensors.torch import save_file
from tiny_models import ADAPTERS, disturb, with_adapter, write_model

from prefdag.export import pipeline
from prefdag.image import model as resnet
from prefdag.runtime.artifacts import write_json
from prefdag.runtime.yaml import read_yaml
from prefdag.text import model as lm
from prefdag.text import trainable
from prefdag.tokenizer.tokenizer import ChatTokenizer

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DIALOGUES = [
    user("hi"),
    [{"role": "system", "content": "aim"}, *user("a <|im_end|> b"), {"role": "assistant", "content": "é"}, *user("?")],
    user(" hi him\n"),
]
SMALL = resnet.Architecture(arch="resnet18", stem="imagenet", dropout=0.2, channels=1, classes=4)


def write_reference(folder: Path, kind: str = "llama") -> Path:
    """A tiny model with a byte tokenizer: a llama with ChatML, or a gpt2 whose only control token is named in config.json."""
    if kind == "llama":
        write_model(folder, kind, vocabulary=263)
        return write_byte_tokenizer(folder, SPECIALS, CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>")
    write_model(folder, kind, vocabulary=263, bos_token_id=260, eos_token_id=260)
    return write_byte_tokenizer(folder, ["<|endoftext|>"], None)


def write_policy(reference: Path, adapter: str, folder: Path) -> lm.Policy:
    """A policy far from its reference, saved as dpo_text saves it."""
    policy = with_adapter(reference, ADAPTERS[adapter])
    disturb(policy)
    folder.mkdir(parents=True)
    trainable.save_policy(policy, folder, reference)
    return policy


def write_project(root: Path, adapter: str = "lora") -> Path:
    """Everything that `prefdag export` reads, below `root`."""
    reference = write_reference(root / "models/reference")
    write_policy(reference, adapter, root / "models/policy")
    _write_pairs(root, ChatTokenizer(reference, "chat"))
    _write_images(root)
    with TemporaryDirectory() as inputs:
        write_inputs(Path(inputs))
        for track in ("text", "image"):
            (root / "reports" / track).mkdir(parents=True)
            shutil.copyfile(Path(inputs, f"reports/{track}/metrics.json"), root / f"reports/{track}/metrics.json")
    card = "---\nlibrary_name: peft\nlicense: apache-2.0\n---\n\n# An adapter\n\nIt ranks 63.5% right.\n"
    (root / "reports/model_card.md").write_text(card)
    shutil.copyfile(ROOT / "LICENSE", root / "LICENSE")
    params = read_yaml(ROOT / "params.yaml")
    if adapter in ("full", "prefix"):
        params["dpo_text"]["adapter"] = {"kind": adapter} | ({"tokens": 3} if adapter == "prefix" else {})
        params["dpo_text"]["reference"]["logps"] = "live" if adapter == "full" else "cached"
    with (root / "params.yaml").open("w") as stream:
        YAML(typ="safe").dump(params, stream)
    record(root)
    return root


def record(root: Path) -> None:
    """Write a dvc.lock that records the project's parameters and outputs as they are."""
    params = read_yaml(root / "params.yaml")
    stage = {"params": {"params.yaml": params}}
    write_lock(*pipeline.INPUTS, root=root, dpo_text=stage)


def _write_pairs(root: Path, tokenizer: ChatTokenizer) -> None:
    (root / "data/pairs").mkdir(parents=True)
    (root / "data/validated/images").mkdir(parents=True)
    names = [f"row {i}" for i in range(len(DIALOGUES))]
    rows = {
        "id": names,
        "prompt_ids": [tokenizer.prompt(dialogue, 48).ids for dialogue in DIALOGUES],
        "chosen_ids": [tokenizer.response(text).ids for text in ("him", "a", "hi hi")],
    }
    pd.DataFrame(rows).to_parquet(root / "data/pairs/test.parquet")
    # In another order, and with a row that is not in the test split.
    validated = pd.DataFrame({"id": [*names, "of training"][::-1], "prompt": [*DIALOGUES, user("x")][::-1]})
    validated.to_parquet(root / "data/validated/pairs.parquet")


def _write_images(root: Path) -> None:
    torch.manual_seed(0)
    model = resnet.build(SMALL).eval()
    for p in (*model.parameters(), *model.buffers()):  # so that batch statistics also differ from their defaults
        if p.is_floating_point():
            p.data.mul_(1 + 0.1 * torch.rand_like(p))
    (root / "models/dpo_image").mkdir()
    resnet.save(model, SMALL, root / "models/dpo_image")
    images: Any = {"images": random_images(30)}
    save_file(images, root / "data/validated/images/images.safetensors")
    write_json(root / "data/validated/images/classes.json", ["a", "b", "c", "d"])
    (root / "data/image_pairs").mkdir()
    split = ["train"] * 10 + ["val"] * 10 + ["test"] * 10
    classes = [i % 4 for i in range(30)]
    frame = pd.DataFrame({"index": range(30), "split": split, "y_w": classes, "y_l": [(c + 1) % 4 for c in classes]})
    frame.to_parquet(root / "data/image_pairs/pairs.parquet")


def random_images(n: int, size: int = 12) -> torch.Tensor:
    """uint8 (n, 1, size, size)."""
    return torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
