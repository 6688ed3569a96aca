"""DPO training of a language model: ours against TRL's DPOTrainer.

    python -m benchmarks.bench_dpo --rows FILE --model FOLDER [--pairs 32] [--rounds 3]

Rows are drawn from an hh-rlhf .jsonl.gz file; the model is a folder that transformers loads. Everybody trains one epoch on the
same rows in the same order: LoRA with r=8 on q_proj and v_proj from the same start, batches of 4, float32, at most 512 tokens,
AdamW at 1e-4, no dropout, gradients clipped at 1. The other options are for bench_gpu.

    ours             the reference's log-probabilities are computed beforehand, as in the pipeline
    ours sparing     the same, with one pair per forward pass (micro_batch_size: 1)
    trl              TRL's defaults: the reference is computed during training; gradient checkpointing
    trl precomputed  the reference is computed beforehand
    trl fastest      the reference is computed beforehand; no gradient checkpointing

The timing covers training only: from the start of the first step after the warm-up to the end of the last. Memory is the peak
of the whole process.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.harness import Contender, end_in_one_line, markdown, positive, run_rounds, summarise, write
from benchmarks.hh_rows import MAX_LENGTH, arguments, encode, sample
from prefdag.config.adapter import Adapter, Full, Lora
from prefdag.config.loss_options import LossOptions
from prefdag.config.training import Training
from prefdag.text.scoring.logps import Pair

RESULTS = Path(__file__).with_name("bench_dpo.csv")
OURS, TRL = ("ours", "ours sparing"), ("trl", "trl precomputed", "trl fastest")
SETTINGS = ("rows", "model", "pairs", "beta", "adapter", "precision", "batch", "warmup")  # shared by all contenders
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


def start_adapters(model: nn.Module) -> None:
    """Give every contender the same start: A is drawn as in peft, but seeded by its name alone; B stays 0."""
    for name, p in model.named_parameters():
        if "lora_A" in name:
            generator = torch.Generator().manual_seed(sum(name.rpartition("layers")[2].encode()))
            start = nn.init.kaiming_uniform_(torch.empty(p.shape), a=math.sqrt(5), generator=generator)
            p.data.copy_(start)


def training(args: argparse.Namespace) -> Training:
    """The training settings that both sides use."""
    micro_batch = 1 if args.contender == "ours sparing" else args.batch
    return replace(TRAINING, batch_size=args.batch, micro_batch_size=micro_batch, precision=args.precision)


def ours(args: argparse.Namespace) -> dict[str, float]:
    """Train with the trainer, the task and the scoring of stage dpo_text."""
    from transformers import AutoTokenizer

    from prefdag.distributed.process import process
    from prefdag.dpo.preference import Preference
    from prefdag.text import model as lm
    from prefdag.text import trainable
    from prefdag.text.dpo_task import cached_logps, dpo_task
    from prefdag.text.scoring.logps import all_pair_logps
    from prefdag.train.checkpoint import Checkpoints
    from prefdag.train.loop import fit
    from prefdag.train.task import Tasks

    process()  # before the first product on a GPU, as in a stage
    rate = product_rate(args.precision)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    pairs = [encode(texts, tokenizer) for texts in sample(args.rows, tokenizer, args.pairs)]
    policy = trainable.add_adapter(lm.load(args.model), ADAPTERS[args.adapter], 0, "adapter")
    start_adapters(policy)
    preference = Preference("sigmoid", args.beta, LossOptions(**dict.fromkeys(LossOptions.__dataclass_fields__)), {})
    ref_logps = cached_logps(all_pair_logps(trainable.before_training(policy), pairs, 1024, "reference"))
    task = dpo_task(pairs, [str(i) for i in range(len(pairs))], preference, ref_logps)
    first = dpo_task(pairs[:1], ["0"], preference, ref_logps)
    clock = Clock()

    def log(step: int, metrics: Mapping[str, float]) -> None:
        clock.tick()  # after the validation before the first step, then after every step

    with tempfile.TemporaryDirectory() as scratch:
        history = fit(
            policy,
            Tasks(task, first),
            training(args),
            seed=0,
            checkpoints=Checkpoints(Path(scratch)),
            log=log,
            hooks=[preference],
        )
    clock.times = clock.times[: len(history.train) + 1]  # drop the final validation
    return {**figures(args, policy, pairs, clock, rate), **losses([row["loss"] for row in history.train])}


def trl(args: argparse.Namespace, *, precompute: bool, checkpointing: bool) -> dict[str, float]:
    """Train with TRL's DPOTrainer on the same texts in the same order."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    clock = Clock()

    class Ticks(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    rate = product_rate(args.precision)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts = sample(args.rows, tokenizer, args.pairs)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
            args=DPOConfig(
                output_dir=scratch,
                per_device_train_batch_size=args.batch,
                num_train_epochs=1,
                max_length=MAX_LENGTH,
                beta=args.beta,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                bf16=args.precision == "bfloat16",
                use_cpu=not torch.cuda.is_available(),
                precompute_ref_log_probs=precompute,
                gradient_checkpointing=checkpointing,
                train_sampling_strategy="sequential",
                logging_steps=1,
                save_strategy="no",
                report_to=[],
            ),
            train_dataset=Dataset.from_list([texts[i]._asdict() for i in order(args)]),
            processing_class=tokenizer,
            peft_config=lora if args.adapter == "lora" else None,
            callbacks=[Ticks()],
        )
        start_adapters(trainer.model)
        trainer.train()
    step_losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    pairs = [encode(each, tokenizer) for each in texts]
    return {**figures(args, trainer.model, pairs, clock, rate), **losses(step_losses)}


def order(args: argparse.Namespace) -> list[int]:
    """The row numbers in training order, one batch after another."""
    from prefdag.train.optimizer import batch_order

    return [row for _, step in batch_order(args.pairs, training(args), 0) for row in step]


class Clock:
    """Records when training began and when each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self) -> None:
        """Record the time, after the GPU has finished its work."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def figures(
    args: argparse.Namespace, policy: nn.Module, pairs: Sequence[Pair], clock: Clock, rate_before: float
) -> dict[str, float]:
    """Speeds after the warm-up steps. Tokens count prompt and chosen, and prompt and rejected.

    `flops_share` divides by the rate of matrix products: the mean of `rate_before` training and the rate after it, since a
    machine's speed varies.
    """
    timed = [pairs[i] for i in order(args)[args.warmup * args.batch :]]
    seconds = clock.times[-1] - clock.times[args.warmup]
    tokens = sum(2 * len(pair.prompt) + len(pair.chosen or ()) + len(pair.rejected or ()) for pair in timed)
    rate = (rate_before + product_rate(args.precision)) / 2
    metrics = {
        "pairs_per_second": len(timed) / seconds,
        "tokens_per_second": tokens / seconds,
        "flops_share": sum(useful_flops(policy, pair) for pair in timed) / seconds / rate,
    }
    if torch.cuda.is_available():
        metrics["peak_gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return metrics


def losses(values: Sequence[float]) -> dict[str, float]:
    """The losses of the first eight steps, named loss_1 to loss_8."""
    return {f"loss_{i}": float(value) for i, value in enumerate(values[:8], start=1)}


def useful_flops(policy: nn.Module, pair: Pair) -> float:
    """The multiplications and additions that a training step needs for a pair.

    Per weight and token: 2 in the forward pass, 2 for the gradient of activations, and 2 for the gradient of the weights if
    they are trained. The head counts for scored tokens. Attention takes 4 d forward and 8 d backward per token attended to.
    LoRA's own products are left out.
    """
    config: Any = policy.config
    layers = [p for name, p in policy.named_parameters() if ".layers." in name and "lora" not in name]
    each = 6 if layers[0].requires_grad else 4
    head = config.vocab_size * config.hidden_size
    prompt, *responses = (len(ids or ()) for ids in pair[:3])
    seen = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in responses)
    attention = 12 * config.hidden_size * seen * config.num_hidden_layers
    weights = sum(p.numel() for p in layers)
    return each * (weights * (prompt + sum(responses)) + head * sum(responses)) + attention


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


def main() -> None:
    """The command line."""
    parser = arguments(__doc__, (*OURS, *TRL), pairs=32, rounds=3)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--adapter", choices=ADAPTERS, default="lora", help="lora, or full to train every weight")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="bfloat16 uses autocast"
    )
    parser.add_argument("--batch", type=positive, default=4, help="pairs per step")
    parser.add_argument("--warmup", type=int, default=0, help="steps that are not timed")
    args = parser.parse_args()
    if args.contender in OURS:
        print(json.dumps(ours(args)))
    elif args.contender:
        checkpointing = args.contender != "trl fastest"
        print(json.dumps(trl(args, precompute=args.contender != "trl", checkpointing=checkpointing)))
    else:
        shared = [f"--{name}={getattr(args, name)}" for name in SETTINGS]
        command = [sys.executable, "-m", "benchmarks.bench_dpo"]
        frame = run_rounds([Contender(name, [*command, name, *shared]) for name in (*OURS, *TRL)], args.rounds)
        summary = summarise(frame, *TRL)
        write(RESULTS, summary)
        print(markdown(summary))


if __name__ == "__main__":
    end_in_one_line(main)
