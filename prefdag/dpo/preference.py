"""What DPO optimises: from log-probabilities under policy and reference to losses, rewards and metrics.

The steps, in order: LD-DPO's weight of verbose tokens; sum or mean over tokens; the reference; an f-divergence; the loss, or a
weighted sum of losses; soft labels; WPO's weight; constraints. A step that params.yaml does not ask for does nothing. Logged
rewards are beta times the inputs of the loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from prefdag.dpo.hook import StepHook
from prefdag.dpo.losses import Loss, LossInput, f_derivative, log_odds
from prefdag.dpo.options import check_options, with_own
from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.own_losses.checks import check_loss
from prefdag.train.outputs import map_tensors

if TYPE_CHECKING:
    from prefdag.config.constraints import Constraint, ConstraintName
    from prefdag.config.loss_options import LossOptions
    from prefdag.config.reference import Reference
    from prefdag.dpo.pair_batch import PairBatch, Response


def squared_logratio(batch: "PairBatch") -> Tensor:
    """The squared log-ratio, mean over a pair's responses: (pairs,), nats^2."""
    chosen, rejected = batch.chosen, batch.rejected
    squares = (chosen.logps - chosen.ref_logps) ** 2 + (rejected.logps - rejected.ref_logps) ** 2
    if chosen.present is None or rejected.present is None:
        return squares / 2
    return squares / (chosen.present + rejected.present)


def kl(batch: "PairBatch") -> Tensor:
    """KL(policy || reference): (pairs,), nats per response. `exact_kl` if the batch has it, else an estimate.

    The estimate is half the squared log-ratio. It is never negative, and equals the KL to second order if the responses are
    drawn from the reference.
    """
    return squared_logratio(batch) / 2 if batch.exact_kl is None else batch.exact_kl


def chosen_drop(batch: "PairBatch") -> Tensor:
    """By how much the chosen response's log-probability is below the reference's: (pairs,), nats.

    DPO-Positive (arXiv:2402.13228, eq. 3) penalises this; its relu is this constraint with threshold 0.
    """
    return batch.chosen.ref_logps - batch.chosen.logps


CONSTRAINTS: Mapping["ConstraintName", Callable[["PairBatch"], Tensor]] = {"kl": kl, "chosen_drop": chosen_drop}

SATURATED = 4.6  # nats of reward margin: there the sigmoid is 0.99


class LossInputs(NamedTuple):
    """What a loss takes of the two responses, (pairs,) each, and the reference's margin between them."""

    chosen: Tensor
    rejected: Tensor
    ref_margin: Tensor


class Preference(nn.Module, StepHook):
    """A loss with its parameters. Its only state is the multipliers of the constraints, updated by dual ascent.

    Args:
        loss: a name, or the weights of a sum of losses by name.
        own_losses: losses of the user's own, by name, beside the built-in ones.

    Raises:
        ParamsError: an option that the loss does not use, losses that cannot be summed, or a loss of the user's own that
            cannot be trained on (see `own_losses/checks.py`).
    """

    def __init__(
        self,
        loss: str | Mapping[str, float],
        beta: float,
        options: "LossOptions",
        constraints: "Mapping[ConstraintName, Constraint | None]",
        own_losses: Mapping[str, Loss] = {},
    ) -> None:
        super().__init__()
        self.weights = {loss: 1.0} if isinstance(loss, str) else dict(loss)
        self.known = with_own(own_losses)
        self.terms = {name: self.known[name] for name in self.weights}
        self.beta = beta
        self.options = {name: value for name, value in asdict(options).items() if value is not None}
        own_options = self.options.pop("own", {})
        self.constraints = {name: constraint for name, constraint in constraints.items() if constraint}
        check_options(self.terms, self.options, own_options)
        self.options |= own_options
        for name in self.terms.keys() & own_losses.keys():
            check_loss(name, self.terms[name], beta, self.options)
        self.input: LossInput = next(loss.input for name, loss in self.terms.items() if name != "sft")
        start = [constraint.multiplier for constraint in self.constraints.values()]
        self.multipliers: Tensor
        self.register_buffer("multipliers", torch.tensor(start, dtype=torch.float64))

    @property
    def jointly(self) -> bool:
        """Whether the loss depends on all rows of an optimiser step together."""
        return any(loss.jointly for loss in self.terms.values())

    @property
    def uses_reference(self) -> bool:
        """Whether the loss or a constraint depends on the reference."""
        return bool(self.constraints) or (self.input == "logratios" and not self.options.get("reference_free"))

    @property
    def uses_confidence(self) -> bool:
        """Whether the loss uses `Response.confidence`, which costs a softmax."""
        return bool(self.options.get("wpo"))

    @property
    def uses_kl(self) -> bool:
        """Whether the loss uses `PairBatch.kl`, which costs a forward pass over mismatched responses."""
        return any("kl" in loss.keywords for loss in self.terms.values())

    def check_reference(self, config: "Reference", key: str) -> None:
        """Raises `ParamsError` if the reference is to be updated but the loss has none; `key` is that of `config`."""
        if config.update != "none" and not self.uses_reference:
            raise ParamsError(
                f"params.yaml: {key}.update: '{config.update}' updates a reference that the loss does not use; set it to none"
            )

    def check_rows(self, preference: Any, has_both: bool, where: str) -> None:
        """Raises `DataError` if the loss cannot take these rows.

        Args:
            preference: the rows' probabilities that chosen is preferred, (rows,).
            has_both: whether every row has a chosen and a rejected response.
        """
        for name, loss in self.terms.items():
            if not has_both and not loss.unpaired:
                able = ", ".join(name for name, loss in self.known.items() if loss.unpaired)
                raise DataError(f"{where}: rows with one response: '{name}' needs both; set loss to one of {able}")
            if loss.sorts and (preference != 1).any():
                raise DataError(
                    f"{where}: column preference: loss '{name}' sorts rows and cannot weigh them; set it to 1.0"
                )

    def loss_inputs(self, batch: "PairBatch", kind: LossInput) -> LossInputs:
        """The inputs of a loss that takes this kind of input."""
        whole = kind in ("logratios", "logps")
        chosen, ref_chosen = self._inputs(batch.chosen, kind, whole)
        rejected, ref_rejected = self._inputs(batch.rejected, kind, whole)
        return LossInputs(chosen, rejected, ref_chosen - ref_rejected)

    def _inputs(self, response: "Response", kind: LossInput, whole: bool) -> tuple[Tensor, Tensor]:
        """A response's loss input, and its log-probability under the reference, reduced alike."""
        policy = self._logps(response.logps, response.shared_logps, whole)
        reference = self._logps(response.ref_logps, response.ref_shared_logps, whole)
        if not whole or self.options.get("reduction") == "mean":
            policy, reference = policy / response.tokens, reference / response.tokens
        if self.options.get("reference_free"):
            reference = torch.zeros_like(reference)
        if kind == "log_odds":
            return log_odds(policy), reference
        if kind != "logratios":
            return policy, reference
        logratios = policy - reference
        if divergence := self.options.get("f_divergence"):
            logratios = f_derivative(logratios, divergence, self.options.get("f_alpha", 0.5))
        return logratios, reference

    def _logps(self, logps: Tensor, shared_logps: Tensor | None, whole: bool) -> Tensor:
        """Log-probabilities in which tokens beyond the shared length weigh `ld_alpha` (LD-DPO, arXiv:2409.06411)."""
        if not whole or "ld_alpha" not in self.options:
            return logps
        shared = logps if shared_logps is None else shared_logps
        return shared + self.options["ld_alpha"] * (logps - shared)

    def rewards(self, batch: "PairBatch") -> tuple[Tensor, Tensor]:
        """Implicit rewards of chosen and rejected responses, (pairs,) each: beta times the input, or ORPO's input itself."""
        scale = 1.0 if self.input == "log_odds" else self.beta
        inputs = self.loss_inputs(batch, self.input)
        return scale * inputs.chosen, scale * inputs.rejected

    def _hard_losses(self, batch: "PairBatch") -> Tensor:
        """The losses if chosen is preferred for certain: (pairs,)."""
        chosen, rejected = batch.chosen, batch.rejected
        ones = torch.ones_like(chosen.logps)
        present = [ones if response.present is None else response.present for response in (chosen, rejected)]
        total = torch.zeros_like(ones)
        for name, loss in self.terms.items():
            inputs = self.loss_inputs(batch, loss.input)
            arguments: dict[str, Any] = {
                "kl": batch.kl,
                "present": present,
                "ref_margin": inputs.ref_margin,
                "chosen_mean_logps": chosen.logps / chosen.tokens,
                **self.options,
            }
            keywords = {key: arguments[key] for key in loss.keywords if key in arguments}
            values = loss.function(inputs.chosen, inputs.rejected, self.beta, **keywords)
            if loss.unpaired:
                values = values[0] * present[0] + values[1] * present[1]
                values = values / (present[0] + present[1]) if loss.mean else values
            total = total + self.weights[name] * values
        return total

    def losses(self, batch: "PairBatch") -> Tensor:
        """The losses with soft labels, WPO's weight and constraints: (pairs,), with gradient."""
        losses = self._hard_losses(batch)
        if (
            batch.preference is not None
        ):  # the expected loss if a pair's label is drawn: probabilistic DPO, for any loss
            p = batch.preference
            losses = p * losses + (1 - p) * self._hard_losses(batch.swapped())
        if self.uses_confidence:  # arXiv:2406.11827, eq. 2
            confidences: Any = (batch.chosen.confidence, batch.rejected.confidence)
            losses = losses * (confidences[0] + confidences[1]).detach().exp()
        for multiplier, (name, constraint) in zip(self.multipliers, self.constraints.items(), strict=True):
            losses = losses + multiplier.to(losses) * torch.relu(CONSTRAINTS[name](batch) - constraint.threshold)
        return losses

    def forward(self, batch: "PairBatch") -> tuple[Tensor, dict[str, Tensor]]:
        """Losses, (pairs,), with gradient, and metrics without: (pairs,) each, or (pairs, 2) with their weights."""
        with torch.no_grad():
            metrics = self._metrics(batch)
            metrics |= {f"constraint/{name}": CONSTRAINTS[name](batch) for name in self.constraints}
        return self.losses(batch), metrics

    def _metrics(self, batch: "PairBatch") -> dict[str, Tensor]:
        chosen, rejected = self.rewards(batch)
        margin = chosen - rejected
        p = torch.ones_like(margin) if batch.preference is None else batch.preference
        longer = (batch.chosen.tokens - batch.rejected.tokens).sign().to(margin)
        of_chosen = {"rewards/chosen": chosen, "logps/chosen": batch.chosen.logps.detach()}
        of_rejected = {"rewards/rejected": rejected, "logps/rejected": batch.rejected.logps.detach()}
        of_both = {
            "rewards/margin": margin,
            # The share of labels that the sign of the margin gets right. A tie is half right, so that a policy equal to its
            # reference has an accuracy of one half.
            "rewards/accuracy": 0.5 + (p - 0.5) * margin.sign(),
            "rewards/saturated": (margin.abs() > SATURATED).to(margin),
            "rewards/longer": margin * longer,
            "lengths/longer": longer,
        }
        metrics = {**of_chosen, **of_rejected, **of_both}
        has_chosen, has_rejected = batch.chosen.present, batch.rejected.present
        if has_chosen is not None and has_rejected is not None:  # means over the responses that are present
            for group, has in (
                (of_chosen, has_chosen),
                (of_rejected, has_rejected),
                (of_both, has_chosen * has_rejected),
            ):
                metrics |= {name: torch.stack([values, has.to(values)], dim=1) for name, values in group.items()}
        return {
            **metrics,
            "kl": kl(batch).detach(),
            "logratios/square": squared_logratio(batch),
            "gradient/zero": self._zero_gradient(batch),
        }

    @torch.enable_grad()
    def _zero_gradient(self, batch: "PairBatch") -> Tensor:
        """1.0 for pairs without effect: both responses look the same, or the loss is flat at this point. (pairs,)."""
        constant = map_tensors(Tensor.detach, batch)
        chosen, rejected = constant.chosen.logps.requires_grad_(), constant.rejected.logps.requires_grad_()
        gradients = torch.autograd.grad(self.losses(constant).sum(), (chosen, rejected))
        flat = (gradients[0] == 0) & (gradients[1] == 0)
        alike = (chosen == rejected) & (batch.chosen.ref_logps == batch.rejected.ref_logps)
        return (flat | alike).to(gradients[0])

    # As a `StepHook`

    def state(self) -> dict[str, Tensor]:
        """The multipliers, float64 (constraints,)."""
        return {"multipliers": self.multipliers}

    def after_step(self, metrics: Mapping[str, float], epoch_ends: bool) -> None:
        """Dual ascent: a multiplier grows while the constraint's mean is violated, and shrinks towards 0 while it holds."""
        for i, (name, constraint) in enumerate(self.constraints.items()):
            step = constraint.dual_rate * (metrics[f"constraint/{name}"] - constraint.threshold)
            self.multipliers[i] = max(0.0, float(self.multipliers[i]) + step)

    def metrics(self) -> dict[str, float]:
        """The multipliers by name."""
        return {f"multiplier/{name}": float(m) for name, m in zip(self.constraints, self.multipliers, strict=True)}
