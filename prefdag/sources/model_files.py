"""What kind of model a folder holds, by its files: one that is understood as a whole, or one line that says what to do."""

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.(safetensors|gguf)$")
HEADER = 100_000_000  # bytes; safetensors itself allows no longer one
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def main_file(source: Path) -> tuple[Path, str]:
    """The folder of the model in `source`, and the name of its main file there: a .gguf file, or config.json.

    The folder is `source` itself, or the only one below it that has a model.

    Raises:
        DataError: there is no such model, only a part of one, or more than one.
    """
    folder = _model_folder(source)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    fault = mixture_fault(names) or _adapter_alone(folder, names) or _gguf_fault(names)
    ggufs = [name for name in names if name.endswith(".gguf")]
    if not fault and not ggufs:
        fault = _weights_fault(folder, names) or _damage(folder, names) or _quantisation_fault(folder)
    if fault:
        raise DataError(fault)
    return folder, ggufs[0] if ggufs else CONFIG


def adapter_folder(source: Path) -> Path:
    """The folder of the adapter in `source`: itself, or the only one below it that has an adapter.

    Raises:
        DataError: there is no such adapter in safetensors, only a part of one, or more than one.
    """
    files = sorted(path for path in source.rglob("*") if path.is_file())
    folders = [path.parent for path in files if path.name == ADAPTER]
    folder = source if source in folders or not folders else folders[0]
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    there = ", ".join(names[:12]) or "no file"
    if not folders:
        raise DataError(f"{ADAPTER}: not found; the source has {there}; a whole model is a download_model.source")
    if folder != source and len(folders) > 1:
        places = ", ".join(each.relative_to(source).as_posix() for each in folders[:5])
        raise DataError(
            f"{ADAPTER}: not at the top of the source, but there are adapters in {places}; choose one of them"
        )
    fault = mixture_fault(names)
    if not fault and ADAPTER_WEIGHTS not in names:
        pickled = next((name for name in names if name.startswith("adapter_") and name.endswith(PICKLED)), None)
        why = f"{pickled} is refused, since it can run code when it is loaded" if pickled else f"the source has {there}"
        fault = f"{ADAPTER_WEIGHTS}: not found; {why}; save the adapter with peft's save_pretrained"
    if fault := fault or _damage(folder, names):
        raise DataError(fault)
    return folder


def adapter_fault(names: Iterable[str]) -> str | None:
    """What is wrong with a model that has an adapter's files, if it has."""
    there = list(names)
    alone = next((name for name in sorted(there) if _of_adapter(name)), None)
    return mixture_fault(there) or (
        alone
        and f"{alone}: an adapter, not a whole model; merge it into its base model (peft's merge_and_unload) and use the result"
    )


def mixture_fault(names: Iterable[str]) -> str | None:
    """What is wrong if there is an adapter beside a whole model."""
    there = sorted(names)
    adapters = [name for name in there if _of_adapter(name)]
    if not adapters:
        return None
    folder = PurePosixPath(adapters[0]).parent
    beside = [name for name in there if PurePosixPath(name).parent == folder and _is_model(PurePosixPath(name).name)]
    return (
        f"{adapters[0]}: an adapter beside a whole model ({beside[0]}), and only one of them would be used; "
        "merge the adapter into the model (peft's merge_and_unload), or leave its files out"
        if beside
        else None
    )


def _adapter_alone(folder: Path, names: list[str]) -> str | None:
    """What to do with an adapter in place of a model, if it is one."""
    if not any(map(_of_adapter, names)):
        return None
    base = _base(folder)
    return (
        f"{ADAPTER}: an adapter, not a whole model; make it download_model.adapter, and its base model"
        f"{f' {base}' if base else ''} download_model.source"
    )


def _of_adapter(name: str) -> bool:
    return PurePosixPath(name).name.startswith((ADAPTER, "adapter_model."))


def _is_model(name: str) -> bool:
    return name.endswith(".gguf") or (name.endswith((".safetensors", *PICKLED)) and not name.startswith("adapter_"))


def _base(folder: Path) -> str | None:
    """The base model that an adapter's configuration names, quoted; None if there is none."""
    try:
        name: Any = read_json(folder / ADAPTER).get("base_model_name_or_path")
    except (DataError, AttributeError):
        return None
    return f"'{name}'" if isinstance(name, str) and name else None


def _model_folder(source: Path) -> Path:
    """`source`, or the only folder below it with a model. Raises `DataError` if several have one."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    top = [path.name for path in files if path.parent == source]
    if any(name in {CONFIG, ADAPTER} or _is_model(name) for name in top):
        return source
    folders = sorted({path.parent for path in files if path.name in {CONFIG, ADAPTER} or path.suffix == ".gguf"})
    if len(folders) > 1:
        names = ", ".join(folder.relative_to(source).as_posix() for folder in folders[:5])
        raise DataError(f"{CONFIG}: not at the top of the source, but there are models in {names}; choose one of them")
    return folders[0] if folders else source


def _gguf_fault(names: list[str]) -> str | None:
    ggufs = [name for name in names if name.endswith(".gguf")]
    if not ggufs:
        return None
    if SHARD.search(ggufs[0]):
        return f"{ggufs[0]}: a part of a split model; join the parts with llama-gguf-split --merge, and use the result"
    if len(ggufs) > 1:
        return f"{ggufs[0]}: one of {len(ggufs)} .gguf files; keep only the one to use"
    if weights := [name for name in names if name.endswith(".safetensors")]:
        return f"{ggufs[0]}: beside {weights[0]}, which is another form of a model; keep only the one to use"
    return None


def _weights_fault(folder: Path, names: list[str]) -> str | None:
    """What is missing of a folder in the form of transformers, if anything."""
    there = ", ".join(names[:12]) or "no file"
    weights = [name for name in names if name.endswith(".safetensors")]
    if CONFIG not in names:
        if any(name.startswith("consolidated.") for name in weights):
            return f"{weights[0]}: weights in Mistral's own form; use the same model in the form of transformers, with {CONFIG}"
        if names in ([name] for name in weights):
            return f"{weights[0]}: the weights alone; name the folder that has them, {CONFIG} and the tokenizer"
        if not weights and any(name in TOKENIZERS for name in names):
            return f"{CONFIG}: not found; the source has only a tokenizer ({there}); add {CONFIG} and the weights"
        return f"{CONFIG}: not found, nor is a .gguf file; the source has {there}"
    if not weights:
        if pickled := [name for name in names if name.endswith(PICKLED)]:
            return (
                f"*.safetensors: not found; {pickled[0]} is refused, since it can run code when it is loaded; convert it "
                "(save_pretrained of transformers writes safetensors), or choose another revision"
            )
        return f"*.safetensors: not found, nor is a .gguf file; the source has {there}"
    if INDEX in names:
        if WEIGHTS in names:
            return f"{INDEX}: beside {WEIGHTS}, so there are two sets of weights; keep only the one to use"
        return _shards_fault(folder, weights)
    if WEIGHTS in names:
        return None
    if shards := [name for name in weights if SHARD.search(name)]:
        return f"{INDEX}: not found, but it must name the parts, such as {shards[0]}; fetch all files of the model"
    if weights[0].startswith("consolidated."):
        return f"{weights[0]}: weights in Mistral's own form; add {WEIGHTS}, or the parts that {INDEX} names"
    return (
        f"{WEIGHTS}: not found; the weights are in {', '.join(weights[:3])}; rename the file if it is the whole model"
    )


def _shards_fault(folder: Path, weights: list[str]) -> str | None:
    try:
        parts = set(read_json(folder / INDEX)["weight_map"].values())
    except (DataError, AttributeError, KeyError, TypeError):
        return f"{INDEX}: not an index of weights; fetch it again"
    if missing := sorted(parts - set(weights)):
        return (
            f"{INDEX}: names {missing[0]}, which is missing ({len(missing)} of {len(parts)} parts are); fetch all files"
        )
    return None


def _damage(folder: Path, names: list[str]) -> str | None:
    """The file that is not whole, such as after a copy that was cut, if any."""
    for name in names:
        if name.endswith(".safetensors") and (size := _size_by_header(folder / name)) != (
            there := (folder / name).stat().st_size
        ):
            of = "its header cannot be read" if size is None else f"it has {there:,} of {size:,} bytes"
            return f"{name}: not whole, {of}; fetch or copy it again"
        if name in (CONFIG, ADAPTER, "tokenizer.json"):
            try:
                read_json(folder / name)
            except DataError:
                return f"{name}: not whole, or not JSON; fetch or copy it again"
    return None


def _size_by_header(weights: Path) -> int | None:
    """The size in bytes that a .safetensors file should have; None if its header cannot be read."""
    with weights.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > HEADER:
            return None
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return 8 + length + max(ends, default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            return None


def _quantisation_fault(folder: Path) -> str | None:
    try:
        method = read_json(folder / CONFIG)["quantization_config"]["quant_method"]
    except (DataError, KeyError, TypeError):
        return None
    if method == "mxfp4":  # transformers unpacks these
        return None
    return f"{CONFIG}: the weights are quantised ({method}) and cannot be trained as they are; choose the unquantised model"


def left_over(folder: Path) -> list[str]:
    """Weights in a model's folder that are not read: other variants of it, or a copy in another form."""
    read = {WEIGHTS}
    if (folder / INDEX).exists():
        read = set(read_json(folder / INDEX)["weight_map"].values())
    return sorted(p.name for p in folder.iterdir() if p.suffix in {".safetensors", *PICKLED} and p.name not in read)
