"""What DPO optimises: the scores of policy and reference on some pairs to losses, rewards and metrics.

From log-probabilities to the loss of a pair, in this order: LD-DPO's weight of verbose tokens; mean or sum over tokens;
the reference; an f-divergence; the loss, or a weighted sum of losses; soft labels; WPO's weight; constraints. Each is the
identity where params.yaml does not ask for it. The rewards that are logged are the scores that the loss sees.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Required, TypedDict

import torch
from torch import Tensor, nn

from prefdag.dpo.losses import LOSSES, f_score, log_odds
from prefdag.dpo.options import check_options
from prefdag.runtime.errors import DataError, ParamsError
from prefdag.train.hook import StepHook

if TYPE_CHECKING:
    from prefdag.config.constraints import Constraint, ConstraintName
    from prefdag.config.loss import LossName
    from prefdag.config.loss_options import LossOptions
    from prefdag.config.reference import Reference


class Scores(TypedDict, total=False):
    """What policy and reference say of some pairs: tensors (pairs,), log-probabilities in nats, float32 or wider.

    A classifier's response is its class, of one token. Keys that are absent are not needed.
    """

    chosen: Required[Tensor]  # log pi(y_w | x), summed over the tokens of y_w
    rejected: Required[Tensor]
    ref_chosen: Required[Tensor]  # the same under the reference
    ref_rejected: Required[Tensor]
    chosen_tokens: Required[Tensor]  # |y_w|
    rejected_tokens: Required[Tensor]
    chosen_shared: Tensor  # the part of `chosen` that the first min(|y_w|, |y_l|) tokens make up; absent: all of it
    rejected_shared: Tensor
    ref_chosen_shared: Tensor
    ref_rejected_shared: Tensor
    chosen_confidence: Tensor  # mean over tokens of log pi(y_t) - log sum_v pi(v)^2, without gradient
    rejected_confidence: Tensor
    kl: Tensor  # without gradient, what the row says of KL(policy || reference): a mismatched response's log-ratio, say
    exact_kl: Tensor  # KL(policy || reference) of the row, with gradient, where it can be computed
    preference: Tensor  # probability that chosen is preferred; absent: 1
    has_chosen: Tensor  # 1.0 where the row has a chosen response; absent: everywhere
    has_rejected: Tensor


def squared_logratio(scores: Scores) -> Tensor:
    """The squared log-ratio, mean over a pair's responses: (pairs,), nats^2."""
    squares = (scores["chosen"] - scores["ref_chosen"]) ** 2 + (scores["rejected"] - scores["ref_rejected"]) ** 2
    return squares / (2 if "has_chosen" not in scores else scores["has_chosen"] + scores["has_rejected"])


def kl(scores: Scores) -> Tensor:
    """KL(policy || reference): (pairs,), nats a response. Exact where the scores have it, of classes; else an estimate.

    The estimate is half the squared log-ratio: to second order the KL, where the responses are drawn from the reference;
    never negative.
    """
    return scores["exact_kl"] if "exact_kl" in scores else squared_logratio(scores) / 2


def chosen_drop(scores: Scores) -> Tensor:
    """How far the chosen response's log-probability has fallen below the reference's: (pairs,), nats.

    What DPO-Positive (arXiv:2402.13228, eq. 3) keeps from growing: its loss's relu is this one with threshold 0.
    """
    return scores["ref_chosen"] - scores["chosen"]


CONSTRAINTS: Mapping["ConstraintName", Callable[[Scores], Tensor]] = {"kl": kl, "chosen_drop": chosen_drop}

SATURATED = 4.6  # nats of reward margin: there the sigmoid is 0.99


class Preference(nn.Module, StepHook):
    """A loss with its parameters. Its one state are the multipliers of the constraints, which dual ascent changes.

    Raises:
        ParamsError: a parameter that the loss does not use, or losses that do not go together.
    """

    def __init__(
        self,
        loss: "LossName | Mapping[LossName, float]",
        beta: float,
        options: "LossOptions",
        constraints: "Mapping[ConstraintName, Constraint | None]",
    ) -> None:
        super().__init__()
        self.terms = {loss: 1.0} if isinstance(loss, str) else dict(loss)
        self.beta = beta
        self.options = {name: value for name, value in asdict(options).items() if value is not None}
        self.constraints = {name: constraint for name, constraint in constraints.items() if constraint}
        check_options(self.terms, self.options)
        self.score = next(LOSSES[name].score for name in self.terms if name != "sft")
        start = [constraint.multiplier for constraint in self.constraints.values()]
        self.multipliers: Tensor
        self.register_buffer("multipliers", torch.tensor(start, dtype=torch.float64))

    @property
    def jointly(self) -> bool:
        """Whether the loss looks at all rows of an optimiser step at once."""
        return any(LOSSES[name].jointly for name in self.terms)

    @property
    def uses_reference(self) -> bool:
        """Whether loss or constraints depend on what the reference says."""
        return bool(self.constraints) or (self.score == "logratios" and not self.options.get("reference_free"))

    def check_reference(self, config: "Reference", key: str) -> None:
        """Raises `ParamsError` if the reference is to move and the loss has none; `key` is that of `config` in params.yaml."""
        if config.update != "none" and not self.uses_reference:
            raise ParamsError(
                f"params.yaml: {key}.update: '{config.update}' moves a reference that the loss does not use; set it to none"
            )

    def needs(self, score: str) -> bool:
        """Whether the loss uses scores that cost something: "confidence", "kl"."""
        return {"confidence": bool(self.options.get("wpo")), "kl": "kto" in self.terms}[score]

    def check_rows(self, preference: Any, has_both: bool, where: str) -> None:
        """Whether the loss can take these rows. Raises `DataError`.

        Args:
            preference: the rows' probabilities that chosen is preferred, (rows,).
            has_both: whether each row has a chosen and a rejected response.
        """
        for name in self.terms:
            if not has_both and not LOSSES[name].unpaired:
                able = ", ".join(name for name, loss in LOSSES.items() if loss.unpaired)
                raise DataError(f"{where}: rows with one response: '{name}' needs both; set loss to one of {able}")
            if LOSSES[name].sorts and (preference != 1).any():
                raise DataError(
                    f"{where}: column preference: loss '{name}' sorts rows and cannot weigh them; set it to 1.0"
                )

    def measure(self, scores: Scores, score: str) -> dict[str, Tensor]:
        """The scores of the chosen and of the rejected responses that losses of this kind see, (pairs,) each.

        And `ref_margin`, the difference that the reference sees.
        """
        found: dict[str, Tensor] = {}
        references: dict[str, Tensor] = {}
        whole = score in ("logratios", "logps")
        for side in ("chosen", "rejected"):
            policy, reference = (self._logps(scores, name, whole) for name in (side, f"ref_{side}"))
            if not whole or self.options.get("reduction") == "mean":
                tokens = scores[f"{side}_tokens"]  # type: ignore[literal-required]
                policy, reference = policy / tokens, reference / tokens
            if self.options.get("reference_free"):
                reference = torch.zeros_like(reference)
            references[side] = reference
            found[side] = log_odds(policy) if score == "log_odds" else policy
            if score == "logratios":
                found[side] = policy - reference
                if divergence := self.options.get("f_divergence"):
                    found[side] = f_score(found[side], divergence, self.options.get("f_alpha", 0.5))
        return found | {"ref_margin": references["chosen"] - references["rejected"]}

    def _logps(self, scores: Scores, side: str, whole: bool) -> Tensor:
        """A response's log-probability; under LD-DPO (arXiv:2409.06411) tokens beyond the shared length weigh less."""
        logps: Tensor = scores[side]  # type: ignore[literal-required]
        if whole and "ld_alpha" in self.options:
            shared: Tensor = scores.get(f"{side}_shared", logps)  # type: ignore[assignment]
            logps = shared + self.options["ld_alpha"] * (logps - shared)
        return logps

    def rewards(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """The implicit rewards of chosen and rejected responses, (pairs,) each: beta times the score; ORPO's has no beta."""
        scale = 1.0 if self.score == "log_odds" else self.beta
        measured = self.measure(scores, self.score)
        return scale * measured["chosen"], scale * measured["rejected"]

    def _hard(self, scores: Scores) -> Tensor:
        """The losses of labels that are certain: (pairs,)."""
        ones = torch.ones_like(scores["chosen"])
        present = scores.get("has_chosen", ones), scores.get("has_rejected", ones)
        total = torch.zeros_like(ones)
        for name, weight in self.terms.items():
            loss = LOSSES[name]
            measured = self.measure(scores, loss.score)
            given: dict[str, Any] = {
                "kl": scores.get("kl"),
                "present": present,
                "ref_margin": measured["ref_margin"],
                "chosen_mean_logps": scores["chosen"] / scores["chosen_tokens"],
                **self.options,
            }
            keywords = {key: given[key] for key in loss.keywords if key in given}
            values = loss.function(measured["chosen"], measured["rejected"], self.beta, **keywords)
            if loss.unpaired:
                values = values[0] * present[0] + values[1] * present[1]
                values = values / (present[0] + present[1]) if loss.mean else values
            total = total + weight * values
        return total

    def losses(self, scores: Scores) -> Tensor:
        """The losses with all that is around them, (pairs,), with gradient."""
        losses = self._hard(scores)
        if "preference" in scores:  # the expected loss where a pair's label is drawn: probabilistic DPO, for any loss
            p = scores["preference"]
            losses = p * losses + (1 - p) * self._hard(mirrored(scores))
        if self.options.get("wpo"):  # arXiv:2406.11827, eq. 2
            losses = losses * (scores["chosen_confidence"] + scores["rejected_confidence"]).detach().exp()
        for multiplier, (name, constraint) in zip(self.multipliers, self.constraints.items(), strict=True):
            losses = losses + multiplier.to(losses) * torch.relu(CONSTRAINTS[name](scores) - constraint.threshold)
        return losses

    def forward(self, scores: Scores) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses, (pairs,), with gradient, and metrics without: (pairs,) each, or with their weights (pairs, 2)."""
        with torch.no_grad():
            metrics = self._metrics(scores)
            metrics |= {f"constraint/{name}": CONSTRAINTS[name](scores) for name in self.constraints}
        return self.losses(scores), metrics

    def _metrics(self, scores: Scores) -> dict[str, Tensor]:
        chosen, rejected = self.rewards(scores)
        margin = chosen - rejected
        p = scores.get("preference", torch.ones_like(margin))
        longer = (scores["chosen_tokens"] - scores["rejected_tokens"]).sign().to(margin)
        of_chosen = {"rewards/chosen": chosen, "logps/chosen": scores["chosen"].detach()}
        of_rejected = {"rewards/rejected": rejected, "logps/rejected": scores["rejected"].detach()}
        of_both = {
            "rewards/margin": margin,
            # The share of labels that the sign of the margin gets right. A tie is half right, so that a policy equal to its
            # reference scores one half.
            "rewards/accuracy": 0.5 + (p - 0.5) * margin.sign(),
            "rewards/saturated": (margin.abs() > SATURATED).to(margin),
            "rewards/longer": margin * longer,
            "lengths/longer": longer,
        }
        metrics = {**of_chosen, **of_rejected, **of_both}
        if "has_chosen" in scores:  # means over the responses that there are
            has_chosen, has_rejected = scores["has_chosen"], scores["has_rejected"]
            for group, has in (
                (of_chosen, has_chosen),
                (of_rejected, has_rejected),
                (of_both, has_chosen * has_rejected),
            ):
                metrics |= {name: torch.stack([values, has.to(values)], dim=1) for name, values in group.items()}
        return {
            **metrics,
            "kl": kl(scores).detach(),
            "logratios/square": squared_logratio(scores),
            "gradient/zero": self._zero_gradient(scores),
        }

    @torch.enable_grad()
    def _zero_gradient(self, scores: Scores) -> Tensor:
        """1.0 for pairs that teach nothing: both responses alike, or a loss that is flat where it stands. (pairs,)."""
        still: Any = {name: t.detach() for name, t in scores.items()}  # type: ignore[attr-defined]
        chosen, rejected = (still[side].requires_grad_() for side in ("chosen", "rejected"))
        total = self.losses(still).sum()
        gradients = torch.autograd.grad(total, (chosen, rejected))
        flat = (gradients[0] == 0) & (gradients[1] == 0)
        alike = (chosen == rejected) & (scores["ref_chosen"] == scores["ref_rejected"])
        return (flat | alike).to(gradients[0])

    # As a `StepHook`

    def state(self) -> dict[str, Tensor]:
        """The multipliers, float64 (constraints,)."""
        return {"multipliers": self.multipliers}

    def after_step(self, metrics: Mapping[str, float], epoch_ends: bool) -> None:
        """Dual ascent: a multiplier grows while its constraint is violated in the mean, and shrinks to 0 while it holds."""
        for i, (name, constraint) in enumerate(self.constraints.items()):
            step = constraint.dual_rate * (metrics[f"constraint/{name}"] - constraint.threshold)
            self.multipliers[i] = max(0.0, float(self.multipliers[i]) + step)

    def metrics(self) -> dict[str, float]:
        """The multipliers by name."""
        return {f"multiplier/{name}": float(m) for name, m in zip(self.constraints, self.multipliers, strict=True)}


def mirrored(scores: Scores) -> Scores:
    """The same pairs with chosen and rejected in each other's place."""
    other = {"chosen": "rejected", "rejected": "chosen"}

    def swap(key: str) -> str:
        return "_".join(other.get(part, part) for part in key.split("_"))

    return {swap(key): value for key, value in scores.items()}  # type: ignore[return-value]
