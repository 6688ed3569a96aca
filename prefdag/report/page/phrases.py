"""Numbers into words: how the report writes them, and what it dares to say about them.

The rule of the verdicts: a 95% interval that covers the value under test is called what it is, and that two models differ
on the same rows is said only where McNemar's exact test says so, too. Report and model card print these sentences as they
stand.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from prefdag.config.adapter import Full, Lora, Prefix
from prefdag.config.training import Momentum, StepDecay, Training

if TYPE_CHECKING:
    from prefdag.config.dpo_image import DpoImage
    from prefdag.config.loss import Loss
    from prefdag.config.params import Params
    from prefdag.config.reference import Reference
    from prefdag.config.sft_ref import SftRef
    from prefdag.health.verdict import Verdict as HealthVerdict

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
    """With a sign, and a true minus: +0.571, −0.061. What rounds to zero is +0.000."""
    return f"{value:+z.{digits}f}".replace("-", MINUS)


def signed_span(estimate: Estimate, digits: int = 3) -> str:
    """An interval of signed ends: −0.012 to +0.310."""
    return f"{signed(estimate.low, digits)} to {signed(estimate.high, digits)}"


def number(value: float, digits: int = 3) -> str:
    """Thousands set apart; `digits` decimals for what is no integer."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}".replace("-", MINUS)


def health_line(verdict: "HealthVerdict") -> str:
    """How many findings in how many checks, and what a run does not have the columns for."""
    found, checked = len(verdict.findings), len(verdict.checked)
    line = f"{found or 'no'} {plural('finding', found)} in {checked} {plural('check', checked)}"
    missing = ", ".join(map(spaced, verdict.not_checked))
    return f"{line} (not checked: {missing})." if missing else f"{line}."


def plural(noun: str, count: int) -> str:
    """1 finding; 0 or 2 findings."""
    return noun if count == 1 else f"{noun}s"


def minus(sentence: str) -> str:
    """A sentence whose numbers were written with hyphens, with true minus signs."""
    return re.sub(r"(?<![\w.-])-(?=\d)", MINUS, sentence)


def spaced(name: str) -> str:
    """A name of params.yaml in words: kl_out_of_budget -> kl out of budget."""
    return name.replace("_", " ")


def loss_name(loss: "Loss") -> str:
    """A loss, or a weighted sum of some: 0.8 sigmoid + 1 sft."""
    return loss if isinstance(loss, str) else " + ".join(f"{weight:g} {name}" for name, weight in loss.items())


def loss_settings(params: "Params") -> str:
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


def reference(config: "Reference") -> str:
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


def supervised(config: "SftRef") -> str:
    """Where the reference of a language model comes from."""
    if config.training.epochs == 0:
        return "the base itself"
    merged = "" if isinstance(config.adapter, Full) else ", merged"
    return f"the base after supervised fine-tuning on the chosen responses ({adapter(config.adapter)}{merged})"


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


def negatives(config: "DpoImage") -> str:
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


def image_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """The image track, from reports/image/metrics.json."""
    reference, policy, control = (
        Estimate.of(metrics[model], "accuracy") for model in ("reference", "policy", "control")
    )
    against_reference, against_control = (metrics[f"policy_against_{other}"] for other in ("reference", "control"))
    tone = paired_tone(against_reference)
    headline = {
        "better": "DPO made the classifier more accurate.",
        "unclear": "No clear change in the classifier’s accuracy.",
        "worse": "DPO made the classifier less accurate.",
    }[tone]
    n = metrics["n_test"]
    right = round(n * reference.value)
    return Verdict(
        tone,
        headline,
        (
            f"Accuracy on {number(n)} test images {_change(reference, policy)}.",
            f"DPO set right {number(against_reference['alone_right'])} of the reference’s {number(n - right)} mistakes, "
            f"and broke {number(against_reference['other_alone_right'])} of its {number(right)} right answers: "
            f"{paired_sentence(against_reference, 'reference')}",
            f"A control trained by cross-entropy on the same budget reaches {percent(control.value)} "
            f"({percent_span(control)}). Of the images that one of the two alone gets right, "
            f"{number(against_control['alone_right'])} are the policy’s and "
            f"{number(against_control['other_alone_right'])} the control’s: "
            f"{paired_sentence(against_control, 'control')}",
            f"The policy lies {number(metrics['kl'], 4)} nats an image from the reference (KL).",
        ),
    )


def paired_tone(compared: Mapping[str, float]) -> Tone:
    """What two models on the same images show: something only where the interval and the exact test both say so."""
    tone = Estimate.of(compared, "difference").against(0.0)
    return tone if compared["p"] < 0.05 else "unclear"


def paired_shown(compared: Mapping[str, float], other: str) -> str:
    """`paired_tone` in words, of the policy and another model."""
    return {
        "better": f"the policy is more accurate than the {other}",
        "unclear": "a null result, neither is shown to be more accurate",
        "worse": f"the policy is less accurate than the {other}",
    }[paired_tone(compared)]


def paired_sentence(compared: Mapping[str, float], other: str) -> str:
    """The difference of the accuracies of the policy and another model, and what it shows."""
    return (
        f"a difference of {points(compared['difference'])} points (95% interval {points(compared['difference_low'])} to "
        f"{points(compared['difference_high'])}; McNemar’s exact {p_value(compared['p'])}): {paired_shown(compared, other)}."
    )


def points(share: float) -> str:
    """A difference of shares in percentage points: -0.021 -> −2.1."""
    return signed(100 * share, 1)


def p_value(p: float) -> str:
    """p = 0.243, p < 0.001, in one line."""
    return (f"p = {p:.3f}" if p >= 0.001 else "p < 0.001").replace(" ", "\N{NO-BREAK SPACE}")


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
