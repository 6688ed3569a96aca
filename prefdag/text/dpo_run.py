"""A DPO run of a language model: its policy, and what the training loop takes. Shared by the stage and by notebooks."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prefdag.dpo.reference import FrozenCheck, MovingReference
from prefdag.dpo.start import START_TOLERANCE, StartCheck
from prefdag.text import trainable
from prefdag.text.dpo_task import cached_logps, dpo_task, live_logps
from prefdag.text.scoring.rows import pair_rows, presence, soft_labels
from prefdag.train.task import Task, Tasks

if TYPE_CHECKING:
    from prefdag.config.dpo_text import DpoText
    from prefdag.dpo.hook import StepHook
    from prefdag.dpo.preference import Preference
    from prefdag.text.model import Policy
    from prefdag.text.scoring.formatted import FormattedPairs
    from prefdag.text.scoring.logps import Pair, PairLogps

KEY = "dpo_text.adapter"  # in params.yaml, for error messages
# The reference's log-probabilities of a split's pairs, in their order; given the split, the ids of its rows and its pairs.
CachedLogps = Callable[[str, Sequence[str], Sequence["Pair"]], "PairLogps"]


class DpoRun(NamedTuple):
    """What the training loop takes besides the policy and its settings."""

    tasks: Tasks
    hooks: list["StepHook"]


def new_policy(reference: Path, config: "DpoText", seed: int) -> "Policy":
    """The model in `reference` with a new adapter, or to be trained as a whole. Raises `ParamsError`."""
    return trainable.new_policy(reference, config, seed, KEY)


def dpo_run(
    policy: "Policy",
    splits: Mapping[str, "FormattedPairs"],
    preference: "Preference",
    config: "DpoText",
    cached: CachedLogps,
    where: Callable[[str], str],
) -> DpoRun:
    """Train `policy`, from `new_policy`, on the formatted pairs in `splits`: "train" and, if there is one, "val".

    Args:
        cached: called once per split if `config.reference.logps` is cached.
        where: names a split in error messages.

    Raises:
        DataError: the loss cannot take these rows.
    """
    frozen = [p for p in policy.parameters() if not p.requires_grad]
    moving = None
    if config.reference.update != "none":
        moving = MovingReference(
            trainable.frozen_copy(policy), lambda: trainable.effective_tensors(policy), config.reference
        )
    looked_up = config.reference.logps == "cached"
    live = not looked_up or preference.uses_kl
    # Only if needed: with a fully trained policy, `untrained` is a copy.
    reference = moving.model if moving else trainable.untrained(policy) if live else None

    def task(split: str, rows: "FormattedPairs") -> Task:
        pairs = pair_rows(rows, mismatched=preference.uses_kl)
        labels, present = soft_labels(rows), presence(rows)
        preference.check_rows(rows.preference, present is None, where(split))
        live = live_logps(reference, pairs) if reference else None
        ref_logps = live if live and not looked_up else cached_logps(cached(split, rows.ids, pairs), live)
        return dpo_task(pairs, rows.ids, preference, ref_logps, labels=labels, present=present)

    hooks: list[StepHook] = [preference, moving or FrozenCheck(frozen)]
    if config.adapter.kind != "prefix":  # a new prefix does not start at the reference
        hooks.append(StartCheck(START_TOLERANCE[config.training.precision]))
    tasks = {split: task(split, rows) for split, rows in splits.items()}
    return DpoRun(Tasks(tasks["train"], tasks.get("val")), hooks)
