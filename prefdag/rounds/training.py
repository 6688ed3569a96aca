"""The training of a round: where it starts from, against which reference, and the check of both."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import get_peft_model_state_dict

from prefdag.distributed.sharding import put
from prefdag.dpo.reference import FrozenCheck
from prefdag.dpo.start import START_TOLERANCE, StartCheck
from prefdag.lifecycle.errors import DataError, NumericError
from prefdag.recorded import recorded
from prefdag.runtime.artifacts import read_tensors
from prefdag.text.dpo_run import KEY, DpoRun
from prefdag.text.dpo_task import cached_logps, dpo_task
from prefdag.text.model import ADAPTER_WEIGHTS, Policy, ReferenceAndPolicy
from prefdag.text.scoring.logps import PairLogps, all_pair_logps, pair_logps
from prefdag.text.scoring.rows import pair_rows, presence, soft_labels
from prefdag.text.trainable import new_policy
from prefdag.train.task import Task, Tasks

if TYPE_CHECKING:
    from prefdag.config.dpo_text import DpoText
    from prefdag.dpo.hook import StepHook
    from prefdag.dpo.preference import Preference
    from prefdag.rounds.plan import TrainPlan
    from prefdag.text.scoring.formatted import FormattedPairs

Splits = Mapping[str, "FormattedPairs"]


def start_policy(reference: Path, before: Path, config: "DpoText", plan: "TrainPlan", seed: int) -> Policy:
    """The policy that a round trains: the one in `before`, with its adapter, or a new one on the model in `reference`.

    Raises:
        DataError: `before` has no adapter of this kind.
        ParamsError: as `new_policy`.
    """
    if plan.start == "first":
        return new_policy(reference, config, seed, KEY)
    if config.adapter.kind == "full":
        return new_policy(before, config, seed, KEY)
    policy = new_policy(reference, config, seed, KEY)
    take_adapter(policy, before)
    return policy


@torch.no_grad()
def take_adapter(policy: Policy, folder: Path) -> None:
    """Give the adapter of `policy` the weights of the one in `folder`. Raises `DataError` if they do not fit."""
    path = recorded(folder) / ADAPTER_WEIGHTS
    stored = read_tensors(path, "torch")
    if policy.active_peft_config.is_prompt_learning:  # type: ignore[union-attr]
        own = {"prompt_embeddings": policy.get_parameter("prompt_encoder.default.embedding.weight")}
    else:
        own = get_peft_model_state_dict(policy)  # not copies
    for name in sorted(own.keys() | stored.keys()):
        if name not in own or name not in stored or own[name].shape != stored[name].shape:
            raise DataError(
                f"{path}: {name}: not as dpo_text.adapter describes it; `dvc repro` makes the adapter again"
            )
        if not stored[name].isfinite().all():
            raise DataError(f"{path}: {name}: not finite; `dvc repro` makes the adapter again")
        put(own[name], stored[name])


def all_logps(
    models: ReferenceAndPolicy, splits: Splits, plan: "TrainPlan", *, mismatched: bool
) -> dict[str, dict[str, PairLogps]]:
    """Log-probabilities of the splits' pairs under the models that a round starts from or is measured against, by name:

    "first", models/reference, and "previous", the policy before the round.
    """
    return {
        name: {
            split: all_pair_logps(
                model, pair_rows(rows, mismatched=mismatched), plan.tokens_per_batch, f"{split}, {name}"
            )
            for split, rows in splits.items()
        }
        for name, model in (("first", models.reference), ("previous", models.policy))
        if name in (plan.start, plan.reference)
    }


@torch.no_grad()
def check_start(
    policy: Policy, rows: "FormattedPairs", expected: PairLogps, plan: "TrainPlan", tolerance: float
) -> None:
    """Check that `policy`, before its first step, gives a few pairs the log-probabilities of the model it starts from.

    With `start: previous` and `reference: first`, log-ratios at step 0 are not zero, so `StartCheck` has nothing to check.

    Args:
        expected: of all rows.
        tolerance: in nats.

    Raises:
        NumericError: a log-probability differs by more.
    """
    pairs = pair_rows(rows)
    some = sorted({0, len(pairs) // 2, len(pairs) - 1})
    modes = [(module, module.training) for module in policy.modules()]
    policy.eval()  # dropout of an adapter that is not zero
    again = pair_logps(policy, [pairs[i] for i in some])
    for module, mode in modes:
        module.training = mode
    for side, old, new in (("chosen", expected.chosen, again.chosen), ("rejected", expected.rejected, again.rejected)):
        for row, was, computed in zip(some, old.logps[some].tolist(), new.logps.tolist(), strict=True):
            if not abs(computed - was) <= tolerance:
                raise NumericError(
                    f"step 0: {rows.ids[row]}: {side}: {computed:.4f} nats, but the {plan.start} policy, from which the "
                    f"round starts, gives {was:.4f} (tolerance {tolerance:g})"
                )


def round_run(
    policy: Policy,
    splits: Splits,
    preference: "Preference",
    config: "DpoText",
    plan: "TrainPlan",
    logps: Mapping[str, Mapping[str, PairLogps]],
    where: Callable[[str], str],
) -> DpoRun:
    """Train `policy` on "train", and validate it on "val", against the reference that the plan names.

    Args:
        logps: from `all_logps`.
        where: names a split in error messages.

    Raises:
        NumericError: the policy is not the model that the round starts from.
        DataError: the loss cannot take these rows.
    """
    tolerance = START_TOLERANCE[config.training.precision]
    if plan.start == "previous" or config.adapter.kind != "prefix":  # a new prefix starts anywhere
        check_start(policy, splits["train"], logps[plan.start]["train"], plan, tolerance)

    def task(split: str, rows: "FormattedPairs") -> Task:
        labels, present = soft_labels(rows), presence(rows)
        preference.check_rows(rows.preference, present is None, where(split))
        pairs = pair_rows(rows, mismatched=preference.uses_kl)
        cached = cached_logps(logps[plan.reference][split])
        return dpo_task(pairs, rows.ids, preference, cached, labels=labels, present=present)

    hooks: list[StepHook] = [preference, FrozenCheck(p for p in policy.parameters() if not p.requires_grad)]
    if plan.start == plan.reference and config.adapter.kind != "prefix":
        hooks.append(StartCheck(tolerance))
    return DpoRun(Tasks(task("train", splits["train"]), task("val", splits["val"])), hooks)
