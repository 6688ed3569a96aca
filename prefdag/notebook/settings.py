"""The options that a notebook's functions take: their defaults, and their checks, which are those of params.yaml."""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from prefdag.check_params import checked
from prefdag.config.constraints import Constraints
from prefdag.config.dpo_text import DpoText
from prefdag.config.format_pairs import FormatPairs
from prefdag.config.loss_options import LossOptions
from prefdag.dpo.losses import LOSSES, Loss
from prefdag.lifecycle.errors import DataError, ParamsError, suggestion
from prefdag.runtime.types import Count, Positive, PositiveInt, strict

NEVER = 10**9  # steps
ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"rank": 8, "alpha": 16, "dropout": 0.0, "target_modules": "auto", "rslora": False, "dora": False},
    "prefix": {"tokens": 8},
    "full": {},
}
TRAINING: Mapping[str, Any] = {
    "epochs": 1,
    "batch_size": 8,
    "micro_batch_size": 4,
    "optimizer": "adamw",
    "learning_rate": 1e-4,
    "weight_decay": 0.0,
    "warmup_fraction": 0.1,
    "schedule": "cosine",
    "max_grad_norm": 1.0,
    "precision": "float32",
    "validate_every": 0.1,
}
ROWS: Mapping[str, Any] = {
    "template": "chat",
    "template_options": {},
    "max_prompt_tokens": "auto",
    "max_response_tokens": "auto",
    "max_auto_tokens": 2048,
    "max_left_out": 0.05,
    "max_rendered": 0.1,
    "val_fraction": 0.0,
}
OTHER: Mapping[str, Any] = {"gradient_checkpointing": False, "tokens_per_batch": 4096}
LOSS: Mapping[str, Any] = {name: None for name in LossOptions.__dataclass_fields__ if name != "own"}


@strict
class LossSettings:
    """The settings of `dpo.loss`."""

    beta: Positive
    loss_options: LossOptions


@strict
class Settings(LossSettings):
    """The settings of `dpo.train`."""

    seed: Count
    constraints: Constraints
    format_pairs: FormatPairs
    dpo_text: DpoText
    tokens_per_batch: PositiveInt


class Terms(NamedTuple):
    """A loss as `Preference` takes it: the weights of its terms by name, and the losses among them that are not built in."""

    weights: dict[str, float]
    own: dict[str, Loss]

    @property
    def keywords(self) -> set[str]:
        """The options of the losses that are not built in."""
        return {key for loss in self.own.values() for key in loss.keywords}

    def with_options(self, options: Mapping[str, Any]) -> "Terms":
        """The same with these values as the defaults of the options of `own`."""

        def bound(loss: Loss) -> Loss:
            taken = {key: value for key, value in options.items() if key in loss.keywords}
            return replace(loss, function=functools.partial(loss.function, **taken)) if taken else loss

        return self._replace(own={name: bound(loss) for name, loss in self.own.items()})


def terms_of(loss: Any) -> Terms:
    """`loss` is a name, a function, a `Loss`, or a mapping from these to weights. Raises `ParamsError`."""
    parts = list((loss if isinstance(loss, Mapping) else {}).items()) or [(loss, 1.0)]
    weights: dict[str, float] = {}
    own: dict[str, Loss] = {}
    for part, weight in parts:
        name = part
        if isinstance(part, str):
            if part not in LOSSES:
                remedy = suggestion(part, LOSSES, f"choose from {', '.join(LOSSES)}, or pass a function")
                raise ParamsError(f"loss: no loss '{part}'; {remedy}")
        else:
            entry = part if isinstance(part, Loss) else Loss(part)
            if not callable(entry.function):
                raise ParamsError(
                    f"loss: {part!r}: pass a name, a function, dpo.Loss(function, ...), or weights of these"
                )
            name = getattr(entry.function, "__name__", "own")
            name = f"own_{name}" if name in LOSSES or name in own else name.strip("<>")
            own[name] = entry
        if not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise ParamsError(f"loss: weight {weight!r} of '{name}': use a number above 0")
        weights[name] = float(weight)
    return Terms(weights, own)


def split_options(terms: Terms, options: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[Terms, dict[str, Any]]:
    """`terms` with the options of their own losses, and the other options, all of them `known`. Raises `ParamsError`."""
    own = {key: value for key, value in options.items() if key in terms.keywords and key not in known}
    rest = {key: value for key, value in options.items() if key not in own}
    for key in rest:
        if key not in known:
            names = [*known, *terms.keywords]
            remedy = suggestion(key, names, f"choose from {', '.join(sorted(names))}")
            raise ParamsError(f"{key}: unknown option; {remedy}")
    return terms.with_options(own), rest


def loss_settings(beta: float, options: Mapping[str, Any]) -> LossSettings:
    """The checked settings of `dpo.loss`. Raises `ParamsError`."""
    return _checked(LossSettings, {"beta": beta, "loss_options": {**LOSS, "own": None, **options}})


def train_settings(
    beta: float, seed: int, adapter: Any, reference: Any, constraints: Any, options: Mapping[str, Any]
) -> Settings:
    """The checked settings of `dpo.train`; its docstring explains the arguments. Raises `ParamsError`."""

    def chosen(defaults: Mapping[str, Any]) -> dict[str, Any]:
        return {key: options.get(key, default) for key, default in defaults.items()}

    adapter = {"kind": adapter} if isinstance(adapter, str) else {"kind": "lora"} | dict(adapter or {})
    adapter = {**ADAPTERS.get("lora" if adapter["kind"] == "qlora" else adapter["kind"], {}), **adapter}
    reference = {"update": "none", "alpha": None, "every": None} | dict(reference or {})
    live = reference["update"] != "none" or adapter["kind"] == "qlora"
    other = chosen(OTHER)
    tree = {
        "beta": beta,
        "seed": seed,
        "loss_options": {**chosen(LOSS), "own": None},
        "constraints": {"kl": None, "chosen_drop": None} | dict(constraints or {}),
        "format_pairs": {**chosen(ROWS), "max_pairs": None, "test_fraction": 0.0, "seed": 0},
        "dpo_text": {
            "adapter": adapter,
            "reference": {"logps": "live" if live else "cached"} | reference,
            "training": {**chosen(TRAINING), "checkpoint_every": NEVER},
            "gradient_checkpointing": other["gradient_checkpointing"],
            "shard": "none",
            "load_dtype": "float32",
        },
        "tokens_per_batch": other["tokens_per_batch"],
    }
    return _checked(Settings, tree)


def _checked(kind: Any, tree: Mapping[str, Any]) -> Any:
    try:
        json.dumps(tree)
    except TypeError as error:
        raise ParamsError(f"an option has a value that params.yaml could not hold: {error}") from None
    with as_arguments():
        return checked(TypeAdapter(kind), tree, "params.yaml")


SECTIONS = re.compile(r"\b(?:dpo_text\.training\.|dpo_text\.|format_pairs\.|format_pairs: |loss_options\.)")


@contextmanager
def as_arguments(rows: str = "") -> Iterator[None]:
    """Errors in this block name arguments of the notebook's functions, not keys of params.yaml, and rows of its dataframe.

    Args:
        rows: the name of the file that the dataframe was written to.
    """
    try:
        yield
    except (ParamsError, DataError) as error:
        message = SECTIONS.sub(
            "", str(error).removeprefix("params.yaml: ").removeprefix("data/validated/pairs.parquet: ")
        )
        message = message.replace("; set it to null", "; leave it out")
        message = re.sub(rf"\b{re.escape(rows)}:(\d+)", r"row \1 of the frame", message) if rows else message
        raise type(error)(message) from None
