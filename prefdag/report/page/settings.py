"""Parameters in words, as the report and the model card describe a run."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from prefdag.config.adapter import Full, Lora, Prefix
from prefdag.config.training import Momentum, StepDecay, Training
from prefdag.report.page.numbers import plural, spaced

if TYPE_CHECKING:
    from prefdag.config.dpo_image import DpoImage
    from prefdag.config.loss import Loss
    from prefdag.config.params import Params
    from prefdag.config.reference import Reference
    from prefdag.config.sft_ref import SftRef


def loss_name(loss: "Loss") -> str:
    """A loss, or a weighted sum of losses: 0.8 sigmoid + 1 sft."""
    return loss if isinstance(loss, str) else " + ".join(f"{weight:g} {name}" for name, weight in loss.items())


def loss_settings(params: "Params") -> str:
    """The options of the loss and the constraints, separated by "; "; empty if none is set."""
    options = asdict(params.loss_options)
    options |= options.pop("own") or {}
    options = {name: value for name, value in options.items() if value not in (None, False)}
    phrases = [spaced(name) if value is True else f"{spaced(name)} {value}" for name, value in options.items()]
    phrases += [
        f"{spaced(name)} kept below {c.threshold:g} (multiplier {c.multiplier:g}, "
        f"{f'updated at rate {c.dual_rate:g}' if c.dual_rate else 'fixed'})"
        for name, c in params.constraints.items()
        if c
    ]
    return "; ".join(phrases)


def reference(config: "Reference") -> str:
    """What happened to the reference while the policy was trained, as a predicate."""
    match config.update:
        case "polyak":
            return f"moved {config.alpha:g} of the way to the policy after every step"
        case "copy":
            return "became a copy of the policy after every epoch"
        case "sync":
            return f"moved {config.alpha:g} of the way to the policy after every {config.every} steps"
        case _:
            return "was frozen"


def adapter(config: Lora | Prefix | Full) -> str:
    """Which weights of a language model are trained."""
    if isinstance(config, Full):
        return "all weights"
    if isinstance(config, Prefix):
        return f"a prefix of {config.tokens} {plural('token', config.tokens)}"
    modules = {"auto": "the usual linear layers", "all-linear": "all linear layers except the head"}
    where = (
        modules[config.target_modules] if isinstance(config.target_modules, str) else ", ".join(config.target_modules)
    )
    kind = {"lora": "LoRA", "qlora": "4-bit QLoRA"}[config.kind]
    variants = "".join([", rank-stabilised" if config.rslora else "", ", DoRA" if config.dora else ""])
    return f"{kind} of rank {config.rank}{variants} on {where}"


def supervised(config: "SftRef") -> str:
    """What the reference of a language model is."""
    if config.training.epochs == 0:
        return "the base model itself"
    merged = "" if isinstance(config.adapter, Full) else ", merged"
    return f"the base model after supervised fine-tuning on the chosen responses ({adapter(config.adapter)}{merged})"


def training(config: Training) -> str:
    """Optimiser, learning rate and schedule, epochs, batch size, precision."""
    names = {"adamw": "AdamW", "adamw_8bit": "8-bit AdamW", "adam": "Adam", "sgd": "SGD", "rmsprop": "RMSprop"}
    if isinstance(config.optimizer, Momentum):
        optimizer = f"{names[config.optimizer.kind]} with momentum {config.optimizer.momentum:g}"
    else:
        optimizer = names[config.optimizer]
    if isinstance(config.schedule, StepDecay):
        every = "epoch" if config.schedule.epochs == 1 else f"{config.schedule.epochs} epochs"
        schedule = f"multiplied by {config.schedule.factor:g} every {every}"
    else:
        schedule = config.schedule
    return (
        f"{optimizer}, learning rate {config.learning_rate} ({schedule} after warm-up), {config.epochs} "
        f"{plural('epoch', config.epochs)} in batches of {config.batch_size} rows, {config.precision}"
    )


def negatives(config: "DpoImage") -> str:
    """Which class of an image is the rejected label."""
    return {
        "random": "another class drawn at random",
        "hard": "the wrong class that the reference finds most probable",
        "confusion": "a wrong class drawn in proportion to the reference’s errors",
    }[config.negatives]
