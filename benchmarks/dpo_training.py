"""DPO trainings that benchmarks time: ours and TRL's, on the same pairs with the same settings, and what is measured."""

import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from benchmarks.arithmetic import Model
from benchmarks.hh_rows import MAX_LENGTH
from prefdag.config.adapter import Adapter, Full, Lora
from prefdag.config.loss_options import LossOptions
from prefdag.config.training import Training
from prefdag.text.scoring.logps import Pair

if TYPE_CHECKING:
    from prefdag.runtime.types import Dtype

RATE, TARGETS = 1e-4, ["q_proj", "v_proj"]
ADAPTERS: Mapping[str, Adapter] = {
    "lora": Lora(kind="lora", rank=8, alpha=16, dropout=0.0, target_modules=TARGETS, rslora=False, dora=False),
    "full": Full(kind="full"),
}
TRAINING = Training(
    epochs=1,
    batch_size=4,
    micro_batch_size=4,
    optimizer="adamw",
    learning_rate=RATE,
    weight_decay=0.0,
    warmup_fraction=0.0,
    schedule="constant",
    max_grad_norm=1.0,
    precision="float32",
    validate_every=10**9,
    checkpoint_every=10**9,
)


@dataclass(frozen=True)
class Run:
    """One training of `pairs` pairs in steps of `batch`; the first `warmup` steps are not timed."""

    adapter: str
    pairs: int
    batch: int
    warmup: int = 0
    beta: float = 0.1
    precision: "Dtype" = "float32"
    micro_batch: int | None = None  # pairs of a forward pass; None: all of a step
    scoring_tokens: int = 1_024  # of a forward pass of the reference, ours

    @property
    def training(self) -> Training:
        """The settings that both sides use."""
        micro_batch = self.micro_batch or self.batch
        return replace(TRAINING, batch_size=self.batch, micro_batch_size=micro_batch, precision=self.precision)

    @property
    def order(self) -> list[int]:
        """The row numbers in training order, one batch after another."""
        from prefdag.train.optimizer import batch_order

        return [row for _, step in batch_order(self.pairs, self.training, 0) for row in step]


def start_adapters(model: nn.Module) -> None:
    """Give every contender the same start: A is drawn as in peft, but seeded by its name alone; B stays 0."""
    for name, p in model.named_parameters():
        if "lora_A" in name:
            generator = torch.Generator().manual_seed(sum(name.rpartition("layers")[2].encode()))
            start = nn.init.kaiming_uniform_(torch.empty(p.shape), a=math.sqrt(5), generator=generator)
            p.data.copy_(start)


def train_ours(policy: Any, pairs: Sequence[Pair], run: Run) -> dict[str, float]:
    """Train with the trainer, the task and the scoring of stage dpo_text."""
    from prefdag.dpo.preference import Preference
    from prefdag.text import trainable
    from prefdag.text.dpo_task import cached_logps, dpo_task
    from prefdag.text.scoring.logps import all_pair_logps
    from prefdag.train.checkpoint import Checkpoints
    from prefdag.train.loop import fit
    from prefdag.train.task import Tasks

    rate = product_rate(run.precision)
    start_adapters(policy)
    preference = Preference("sigmoid", run.beta, LossOptions(**dict.fromkeys(LossOptions.__dataclass_fields__)), {})
    scoring = Clock()
    scoring.tick()
    logps = all_pair_logps(trainable.before_training(policy), pairs, run.scoring_tokens, "reference")
    scoring.tick()
    ref_logps = cached_logps(logps)
    task = dpo_task(pairs, [str(i) for i in range(len(pairs))], preference, ref_logps)
    first = dpo_task(pairs[:1], ["0"], preference, ref_logps)
    clock = Clock()

    def log(step: int, metrics: Mapping[str, float]) -> None:
        clock.tick()  # after the validation before the first step, then after every step

    with tempfile.TemporaryDirectory() as scratch:
        history = fit(
            policy,
            Tasks(task, first),
            run.training,
            seed=0,
            checkpoints=Checkpoints(Path(scratch)),
            log=log,
            hooks=[preference],
        )
    clock.cut(len(history.train))  # drop the final validation
    return {
        **figures(run, policy, pairs, clock, rate),
        **losses([row["loss"] for row in history.train]),
        **scoring.per_second("reference_pairs_per_second", len(pairs)),
    }


def train_trl(
    model: Any, rows: Sequence[Mapping[str, Any]], tokenizer: Any, pairs: Sequence[Pair], run: Run, **options: Any
) -> dict[str, float]:
    """Train with TRL's DPOTrainer.

    Args:
        rows: texts, or token ids as TRL's own preparation names them, in the order of `pairs`.
        options: of `DPOConfig`; `ref_model` is the trainer's.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    clock, scoring = Clock(), Clock()

    class Ticks(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset if "prompt_ids" in dataset.column_names else super()._prepare_dataset(dataset, *args)

        def _precompute_ref_logps(self, *args: Any) -> Any:
            scoring.tick()
            scored = super()._precompute_ref_logps(*args)
            scoring.tick()
            return scored

    rate = product_rate(run.precision)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            ref_model=options.pop("ref_model", None),
            args=DPOConfig(
                output_dir=scratch,
                per_device_train_batch_size=run.batch,
                num_train_epochs=1,
                max_length=options.pop("max_length", MAX_LENGTH),
                beta=run.beta,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                bf16=run.precision == "bfloat16",
                use_cpu=not torch.cuda.is_available(),
                train_sampling_strategy="sequential",
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                **options,
            ),
            train_dataset=Dataset.from_list([dict(rows[i]) for i in run.order]),
            processing_class=tokenizer,
            peft_config=lora if run.adapter == "lora" else None,
            callbacks=[Ticks()],
        )
        start_adapters(trainer.model)
        trainer.train()
    step_losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        **figures(run, trainer.model, pairs, clock, rate),
        **losses(step_losses),
        **scoring.per_second("reference_pairs_per_second", len(pairs)),
    }


class Clock:
    """Records when training began and when each step ended, and what torch had compiled by then."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.compiled: list[int] = []  # frames that torch.compile has compiled so far, anew or again

    def tick(self) -> None:
        """Record the time, after the GPU has finished its work."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        dynamo = sys.modules.get("torch._dynamo.utils")
        self.compiled.append(dynamo.counters["frames"]["total"] if dynamo else 0)

    def cut(self, steps: int) -> None:
        """Forget what came after so many steps."""
        self.times, self.compiled = self.times[: steps + 1], self.compiled[: steps + 1]

    def per_second(self, name: str, count: int) -> dict[str, float]:
        """`count` over the time between the first two ticks, if there were any."""
        return {name: count / (self.times[1] - self.times[0])} if len(self.times) > 1 else {}


def figures(run: Run, policy: nn.Module, pairs: Sequence[Pair], clock: Clock, rate_before: float) -> dict[str, float]:
    """Speeds after the warm-up steps. Tokens count prompt and chosen, and prompt and rejected.

    `flops_share` divides by the rate of matrix products: the mean of `rate_before` training and the rate after it, since a
    machine's speed varies.
    """
    timed = [pairs[i] for i in run.order[run.warmup * run.batch :]]
    seconds = clock.times[-1] - clock.times[run.warmup]
    tokens = sum(2 * len(pair.prompt) + len(pair.chosen or ()) + len(pair.rejected or ()) for pair in timed)
    rate = (rate_before + product_rate(run.precision)) / 2
    useful = sum(useful_flops(policy, pair) for pair in timed) / seconds
    metrics = {
        "pairs_per_second": len(timed) / seconds,
        "tokens_per_second": tokens / seconds,
        "flops_share": useful / rate,
        "useful_tflops": useful / 1e12,
    }
    if run.warmup:
        metrics["compiled_later"] = clock.compiled[-1] - clock.compiled[run.warmup]
    if torch.cuda.is_available():
        metrics["peak_gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return metrics


def losses(values: Sequence[float]) -> dict[str, float]:
    """The losses of the first eight steps, named loss_1 to loss_8."""
    return {f"loss_{i}": float(value) for i, value in enumerate(values[:8], start=1)}


def useful_flops(policy: nn.Module, pair: Pair) -> float:
    """The multiplications and additions that a training step needs for a pair (see `Model.flops`)."""
    config: Any = policy.config
    layers = [p for name, p in policy.named_parameters() if ".layers." in name and "lora" not in name]
    model = Model(config.num_hidden_layers, config.hidden_size, sum(p.numel() for p in layers), config.vocab_size)
    prompt, *responses = (len(ids or ()) for ids in pair[:3])
    return model.flops(prompt, responses, 6 if layers[0].requires_grad else 4)


def product_rate(precision: str) -> float:
    """Multiplications and additions per second in products of square matrices: the median over one second of products.

    The faster of torch's product and ours.
    """
    from prefdag.text.model import DTYPES
    from prefdag.text.scoring.layers import linear

    cuda = torch.cuda.is_available()
    size = 8192 if cuda else 2048
    a, b = torch.randn(2, size, size, dtype=DTYPES[precision], device="cuda" if cuda else "cpu")
    medians = []
    for multiply in (torch.mm, linear):
        clock = Clock()
        clock.tick()
        while clock.times[-1] < clock.times[0] + 1:
            multiply(a, b)
            clock.tick()
        medians.append(np.median(np.diff(clock.times)))
    return float(2 * size**3 / min(medians))
