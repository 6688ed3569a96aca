"""Memory, arithmetic and time of the stages that take most of both: sft_ref, ref_logps and dpo_text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefdag.dpo.losses import LOSSES
from prefdag.estimate.rows import Rows, chosen_groups, groups, largest_micro_batch, tokens
from prefdag.estimate.trace import ReferenceKind, Trace, trace_scoring, trace_training
from prefdag.text.scoring.packing import Group, batches

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from prefdag.config.adapter import Adapter
    from prefdag.config.params import Params
    from prefdag.config.training import Training
    from prefdag.runtime.types import Dtype


@dataclass(frozen=True)
class StageEstimate:
    """What one stage takes, over all its processes unless said otherwise."""

    stage: str
    trace: Trace  # of one process that holds everything
    tokens: int  # trained on, or scored
    checked: int  # scored by validations during training
    flops: float
    sharded: bool = False  # over all processes

    def hours(self, gpus: int, tflops: float) -> float:
        """At a sustained rate of `tflops` (10^12 a second) on each GPU."""
        return self.flops / (gpus * tflops * 1e12) / 3600


def estimates(
    config: "PretrainedConfig", params: "Params", rows: Rows, *, gpus: int = 1, shard: bool = False
) -> list[StageEstimate]:
    """The three stages, in order; without sft_ref if it trains nothing."""
    sft, dpo = params.sft_ref, params.dpo_text
    found = []
    if sft.training.epochs:
        taught = {split: chosen_groups(rows[split]) for split in ("train", "val")}
        found.append(
            _training(
                *("sft_ref", config, sft.adapter, sft.training, taught["train"], taught["val"], sft.seed),
                checkpointing=sft.gradient_checkpointing,
                gpus=gpus,
                shard=shard or sft.shard == "full",
                dtype=sft.load_dtype,
            )
        )
    found.append(_scoring("ref_logps", config, params, groups([*rows["train"], *rows["val"]]), gpus, shard=shard))
    terms = [params.loss] if isinstance(params.loss, str) else list(params.loss)
    known = [LOSSES[name] for name in terms if name in LOSSES]
    mismatched = any("kl" in loss.keywords for loss in known)
    live = dpo.reference.logps == "live" or mismatched
    found.append(
        _training(
            "dpo_text",
            config,
            dpo.adapter,
            dpo.training,
            groups(rows["train"], mismatched=mismatched),
            groups(rows["val"], mismatched=mismatched),
            params.seed,
            checkpointing=dpo.gradient_checkpointing,
            reference="moving" if dpo.reference.update != "none" else "live" if live else "none",
            twice=any(loss.jointly for loss in known),
            gpus=gpus,
            shard=shard or dpo.shard == "full",
            dtype=dpo.load_dtype,
        )
    )
    return found


def _training(
    stage: str,
    config: "PretrainedConfig",
    adapter: "Adapter",
    training: "Training",
    train: Sequence[Group],
    val: Sequence[Group],
    seed: int,
    *,
    checkpointing: bool,
    reference: ReferenceKind = "none",
    twice: bool = False,  # a joint loss: all log-probabilities first, then those of each micro-batch again
    gpus: int,
    shard: bool,
    dtype: "Dtype",
) -> StageEstimate:
    several = training.micro_batch_size * gpus < training.batch_size
    trace = trace_training(
        config,
        adapter,
        training,
        largest_micro_batch(train, training, seed, gpus),
        f"{stage}.adapter",
        checkpointing=checkpointing,
        reference=reference,
        accumulates=several or shard,
        sharded=shard,
        dtype=dtype,
    )
    steps = training.epochs * math.ceil(len(train) / training.batch_size)
    validations = math.ceil(steps / training.steps_between_validations(steps)) + 1
    trained, checked = training.epochs * tokens(train), validations * tokens(val)
    forward = 1 + (reference != "none")
    each = step_flops(trace, full=adapter.kind == "full", checkpointing=checkpointing)
    extra = 2 * trace.parameters * ((reference != "none") + (twice and several))
    flops = trained * (each + extra) + checked * 2 * trace.parameters * forward
    return StageEstimate(stage, trace, trained, checked, flops, sharded=shard and gpus > 1)


def step_flops(trace: Trace, *, full: bool, checkpointing: bool) -> int:
    """Additions and multiplications per token, for N parameters: 2 N forward, 2 N for the gradients of activations, and 2 N for
    those of the weights if all are trained (arXiv:2001.08361, section 2.1); 2 N more if activations are computed twice.

    Attention's own products, which grow with the length of a row, are left out.
    """
    return 2 * trace.parameters * (2 + full + checkpointing)


def _scoring(
    stage: str, config: "PretrainedConfig", params: "Params", rows: Sequence[Group], gpus: int, *, shard: bool
) -> StageEstimate:
    settings = params.ref_logps
    largest = max(batches(rows, settings.tokens_per_batch), key=lambda part: sum(rows[i].n_tokens for i in part))
    trace = trace_scoring(config, [rows[i] for i in largest], settings.dtype)
    scored = tokens(rows)
    sharded = (shard or settings.shard == "full") and gpus > 1
    return StageEstimate(stage, trace, scored, 0, 2.0 * trace.parameters * scored, sharded=sharded)
