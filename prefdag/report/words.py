"""Numbers into words: how the report writes them, and what it dares to say about them.

The rule of the verdicts: a 95% interval that covers the value under test, or two intervals that overlap, is called what
it is. Report and model card print these sentences as they stand.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

from prefdag.config import DpoImage, Full, Lora, Loss, Momentum, Params, Prefix, Reference, StepDecay, Training
from prefdag.dpo import health

Tone = Literal["better", "unclear", "worse"]
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, metrics: Mapping[str, Any], key: str) -> "Estimate":
        """From the entries `key`, `key_low` and `key_high`."""
        return cls(metrics[key], metrics[f"{key}_low"], metrics[f"{key}_high"])

    def against(self, level: float) -> Tone:
        """On which side of `level` the whole interval lies."""
        return "better" if self.low > level else "worse" if self.high < level else "unclear"

    def compared(self, other: "Estimate") -> Tone:
        """On which side of `other`'s interval this one lies, without overlap."""
        return "better" if self.low > other.high else "worse" if self.high < other.low else "unclear"


@dataclass(frozen=True)
class Verdict:
    """What one track shows: the tone of its main comparison, a headline, and the sentences that carry it."""

    tone: Tone
    headline: str
    sentences: tuple[str, ...]


def percent(share: float) -> str:
    """0.613 -> 61.3%."""
    return f"{100 * share:.1f}%"


def percent_span(estimate: Estimate) -> str:
    """The interval of a share: 50.1–72.0%."""
    return f"{100 * estimate.low:.1f}{DASH}{100 * estimate.high:.1f}%"


def span(low: float, high: float) -> str:
    """The interval of a share in percent, or nothing where it is a count and has none."""
    return f"{100 * low:.1f}{DASH}{100 * high:.1f}%" if low < high else ""


def signed(value: float, digits: int = 3) -> str:
    """With a sign, and a true minus: +0.571, −0.061."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def signed_span(estimate: Estimate, digits: int = 3) -> str:
    """An interval of signed ends: −0.012 to +0.310."""
    return f"{signed(estimate.low, digits)} to {signed(estimate.high, digits)}"


def number(value: float, digits: int = 3) -> str:
    """Thousands set apart; `digits` decimals for what is no integer."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}".replace("-", MINUS)


def health_line(verdict: health.Verdict) -> str:
    """How many findings in how many checks, and what a run does not have the columns for."""
    found, checked = len(verdict.findings), len(verdict.checked)
    line = f"{found or 'no'} {plural('finding', found)} in {checked} {plural('check', checked)}"
    missing = ", ".join(map(spaced, verdict.not_checked))
    return f"{line} (not checked: {missing})." if missing else f"{line}."


def plural(noun: str, count: int) -> str:
    """1 finding; 0 or 2 findings."""
    return noun if count == 1 else f"{noun}s"


def spaced(name: str) -> str:
    """A name of params.yaml in words: kl_out_of_budget -> kl out of budget."""
    return name.replace("_", " ")


def loss_name(loss: Loss) -> str:
    """A loss, or a weighted sum of some: 0.8 sigmoid + 1 sft."""
    return loss if isinstance(loss, str) else " + ".join(f"{weight:g} {name}" for name, weight in loss.items())


def loss_settings(params: Params) -> str:
    """What is set beside the loss, its own parameters and the constraints, as "; "-separated phrases; or nothing."""
    options = {name: value for name, value in asdict(params.loss_options).items() if value not in (None, False)}
    phrases = [spaced(name) if value is True else f"{spaced(name)} {value}" for name, value in options.items()]
    phrases += [
        f"{spaced(name)} kept below {c.threshold:g} (multiplier {c.multiplier:g}, "
        f"{f'adapted at the rate {c.dual_rate:g}' if c.dual_rate else 'fixed'})"
        for name, c in params.constraints.items()
        if c
    ]
    return "; ".join(phrases)


def reference(config: Reference) -> str:
    """What the reference did while the policy was trained, as a predicate."""
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
    """What is trained of a language model."""
    if isinstance(config, Full):
        return "every weight"
    if isinstance(config, Prefix):
        return f"a prefix of {config.tokens} {plural('token', config.tokens)}"
    modules = {"auto": "the usual linear layers", "all-linear": "every linear layer but the head"}
    where = (
        modules[config.target_modules] if isinstance(config.target_modules, str) else ", ".join(config.target_modules)
    )
    kind = {"lora": "LoRA", "qlora": "4-bit QLoRA"}[config.kind]
    variants = "".join([", rank-stabilised" if config.rslora else "", ", DoRA" if config.dora else ""])
    return f"{kind} of rank {config.rank}{variants} on {where}"


def training(config: Training) -> str:
    """An optimisation run: optimiser, learning rate and its schedule, epochs, batches, precision."""
    names = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD", "rmsprop": "RMSprop"}
    if isinstance(config.optimizer, Momentum):
        optimizer = f"{names[config.optimizer.kind]} with momentum {config.optimizer.momentum:g}"
    else:
        optimizer = names[config.optimizer]
    if isinstance(config.schedule, StepDecay):
        every = "epoch" if config.schedule.epochs == 1 else f"{config.schedule.epochs} epochs"
        schedule = f"times {config.schedule.factor:g} every {every}"
    else:
        schedule = config.schedule
    return (
        f"{optimizer}, learning rate {config.learning_rate} ({schedule} after warm-up), {config.epochs} "
        f"{plural('epoch', config.epochs)} in batches of {config.batch_size} rows, {config.precision}"
    )


def negatives(config: DpoImage) -> str:
    """Which class of an image is the rejected one."""
    return {
        "random": "another class, drawn at random",
        "hard": "the wrong class that the reference finds most probable",
        "confusion": "a wrong class, drawn as the reference confuses them",
    }[config.negatives]


def is_paired(text: Mapping[str, Any]) -> bool:
    """Whether the held-out rows of reports/text/metrics.json are pairs, or responses that stand alone."""
    return "n_pairs" in text["heldout"]


def text_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """The text track, from reports/text/metrics.json."""
    heldout = metrics["heldout"]
    rewards = heldout["rewards"]
    accuracy, margin = Estimate.of(rewards, "accuracy"), Estimate.of(rewards, "margin")
    tone = accuracy.against(0.5)
    headline = {
        "better": "The policy ranks unseen preferences better than chance.",
        "unclear": "Not shown: that the policy ranks unseen preferences better than chance.",
        "worse": "The policy ranks unseen preferences worse than chance.",
    }[tone]
    beside = {
        "better": "all of it above the 50% of a coin toss",
        "unclear": "an interval that covers the 50% of a coin toss",
        "worse": "all of it below the 50% of a coin toss",
    }[tone]
    change = Estimate.of(heldout["differences"]["policy_reference"], "difference")
    reference, policy = heldout["reference"], heldout["policy"]
    if is_paired(metrics):
        ranked, margins = f"On {number(heldout['n_pairs'])} held-out pairs it ranks", "The mean reward margin"
    else:  # accuracy is the area under the ROC curve
        ranked = (
            f"Of all pairs of a desirable and an undesirable held-out response ({number(heldout['n_chosen'])} and "
            f"{number(heldout['n_rejected'])} of them) it ranks"
        )
        margins = "The difference of the mean rewards of desirable and undesirable responses"
    return Verdict(
        tone,
        headline,
        (
            f"{ranked} {percent(accuracy.value)} right (95% interval {percent_span(accuracy)}, {beside}).",
            f"{margins} is {signed(margin.value)} (95% interval {signed_span(margin)}, {_beside_zero(margin)}).",
            _displacement(rewards["chosen"], rewards["rejected"]),
            f"The policy lies {number(heldout['kl'], 4)} nats a token from the reference (KL). On the held-out chosen "
            f"responses its perplexity is {number(policy['perplexity'], 2)}, the reference’s "
            f"{number(reference['perplexity'], 2)}, the base model’s {number(heldout['base']['perplexity'], 2)} "
            f"({number(heldout['n_tokens'])} tokens). Its cross-entropy is {signed(change.value, 4)} nats a token against the "
            f"reference’s (95% interval {signed_span(change, 4)}, {_beside_zero(change)}).",
        ),
    )


def image_verdict(metrics: Mapping[str, Any], predictions: pd.DataFrame) -> Verdict:
    """The image track, from reports/image/metrics.json and predictions.csv."""
    reference, policy, control = (
        Estimate.of(metrics[model], "accuracy") for model in ("reference", "policy", "control")
    )
    tone = policy.compared(reference)
    headline = {
        "better": "DPO made the classifier more accurate.",
        "unclear": "No clear change in the classifier’s accuracy.",
        "worse": "DPO made the classifier less accurate.",
    }[tone]
    apart = {
        "better": "The intervals do not overlap.",
        "unclear": "The intervals overlap, so the difference may be chance.",
        "worse": "The intervals do not overlap.",
    }[tone]
    beside_control = {
        "better": "the policy is more accurate than it, with intervals that do not overlap",
        "unclear": "the policy’s interval overlaps it, so neither is shown to be better",
        "worse": "the policy is less accurate than it, with intervals that do not overlap",
    }[policy.compared(control)]
    was_right, is_right = (predictions[model] == predictions["label"] for model in ("reference", "policy"))
    return Verdict(
        tone,
        headline,
        (
            f"Accuracy on {number(metrics['n_test'])} test images {_change(reference, policy)}. {apart}",
            f"A control trained by cross-entropy on the same budget reaches {percent(control.value)} "
            f"({percent_span(control)}): {beside_control}.",
            f"DPO set right {int((~was_right & is_right).sum())} of the reference’s {int((~was_right).sum())} mistakes, "
            f"and broke {int((was_right & ~is_right).sum())} of its {number(int(was_right.sum()))} right answers.",
            f"The policy lies {number(metrics['kl'], 4)} nats an image from the reference (KL).",
        ),
    )


def _beside_zero(estimate: Estimate) -> str:
    return {"better": "above zero", "unclear": "which covers zero", "worse": "below zero"}[estimate.against(0.0)]


def _displacement(chosen: float, rejected: float) -> str:
    """What became of the likelihood of either response. That both fall is common in DPO: arXiv:2402.13228."""
    ends = f"(mean reward {signed(chosen)})", f"(mean reward {signed(rejected)})"
    if chosen < 0 and rejected < 0:
        further = "the rejected ones further" if rejected < chosen else "the chosen ones further"
        return (
            f"Both kinds of response became less likely than under the reference, {further}: "
            f"chosen {ends[0]}, rejected {ends[1]}."
        )
    likelier = [
        "more" if reward > 0 else "less" if reward < 0 else "neither more nor less" for reward in (chosen, rejected)
    ]
    return (
        f"Chosen responses became {likelier[0]} likely than under the reference {ends[0]}, "
        f"rejected ones {likelier[1]} likely {ends[1]}."
    )


def _change(before: Estimate, after: Estimate) -> str:
    """The change of a share as it is printed: a difference that rounds away is none."""
    old, new = percent(before.value), percent(after.value)
    if old == new:
        return f"stayed at {new} (95% intervals: {percent_span(before)} before, {percent_span(after)} after)"
    verb = "rose" if after.value > before.value else "fell"
    return f"{verb} from {old} (95% interval {percent_span(before)}) to {new} ({percent_span(after)})"
