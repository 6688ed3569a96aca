"""The memory that `prefdag estimate` foretells, against the memory that training takes on this CPU.

    python -m benchmarks.bench_estimate [--rounds 3]

Models of five sizes with random weights train for two steps of DPO on pairs of random tokens: LoRA and all weights, with and
without gradient checkpointing, in the pipeline's own trainer. `measured_mb` is the peak of the resident memory in training
beyond that of the imports, `estimated_mb` what the estimate says about it.
"""

import argparse
import ctypes
import gc
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Contender, end_in_one_line, markdown, positive, resident, run_rounds, summarise, write
from prefdag.config.adapter import Adapter, Full
from prefdag.config.loss_options import LossOptions
from prefdag.config.training import Training
from prefdag.estimate import page
from prefdag.text.scoring.logps import Pair

RESULTS = Path(__file__).with_name("bench_estimate.csv")
# Width, layers, vocabulary, pairs of a micro-batch and of a step. "tiny" is trained first, for what libraries load when they
# are first used.
SIZES = {
    "tiny": (128, 1, 512, 1, 1),
    "small": (384, 10, 16384, 4, 4),
    "medium": (512, 12, 16384, 2, 4),
    "large": (1024, 8, 16384, 1, 2),
    "wide": (768, 4, 32768, 2, 2),
    "deep": (256, 20, 49152, 3, 3),  # measured after the estimate's constants were chosen
}
ADAPTERS: Mapping[str, Adapter] = {"lora": page.LORA, "full": Full(kind="full")}
CONTENDERS = [
    f"{size}, {adapter}{suffix}"
    for size in SIZES
    if size != "tiny"
    for adapter in ADAPTERS
    for suffix in ("", ", checkpointing")
]
PAIR = Pair([5] * 128, [6] * 96, [7] * 64)


def config_of(size: str) -> Any:
    """A Llama of this size, with two query heads per key head."""
    from transformers import LlamaConfig

    width, layers, vocabulary, *_ = SIZES[size]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        tie_word_embeddings=False,
    )


def train(size: str, adapter: str, checkpointing: bool, folder: Path) -> None:
    """Two steps of the pipeline's own trainer, on the model in `folder`."""
    from prefdag.dpo.preference import Preference
    from prefdag.text import model as lm
    from prefdag.text import trainable
    from prefdag.text.dpo_task import cached_logps, dpo_task
    from prefdag.text.scoring.logps import all_pair_logps
    from prefdag.train.checkpoint import Checkpoints
    from prefdag.train.loop import fit
    from prefdag.train.task import Tasks

    model = lm.load(folder)
    for tensor in model.parameters():
        tensor.sum()  # weights are mapped from the file: as on a GPU, all of them are to be in memory
    policy = trainable.add_adapter(model, ADAPTERS[adapter], 0, "adapter")
    if checkpointing:
        trainable.checkpoint_gradients(policy)
    pairs = [PAIR] * training(size).batch_size
    preference = Preference("sigmoid", 0.1, LossOptions(**dict.fromkeys(LossOptions.__dataclass_fields__)), {})
    ref_logps = cached_logps(all_pair_logps(trainable.before_training(policy), pairs, 1024, "reference"))
    task = dpo_task(pairs, [str(i) for i in range(len(pairs))], preference, ref_logps)
    fit(policy, Tasks(task, None), training(size), seed=0, checkpoints=Checkpoints(folder), log=lambda *_: None)


def training(size: str) -> Training:
    """The settings for a size."""
    *_, micro_batch_size, batch_size = SIZES[size]
    return replace(
        page.TRAINING, epochs=2, micro_batch_size=micro_batch_size, batch_size=batch_size, precision="float32"
    )


def measure(size: str, adapter: str, checkpointing: bool) -> dict[str, float]:
    """The peak of a training in this process, and the estimate of it."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        for each in (size, "tiny"):
            AutoModelForCausalLM.from_config(config_of(each)).save_pretrained(Path(scratch) / each)
        train("tiny", adapter, checkpointing, Path(scratch) / "tiny")
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what making the models took and left
        base = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        train(size, adapter, checkpointing, Path(scratch) / size)
        measured = resident("VmHWM") - base
    estimated = estimate(size, adapter, checkpointing)
    numbers = {"base_mb": base / 1e6, "measured_mb": measured / 1e6, "estimated_mb": estimated / 1e6}
    return {**numbers, "estimated_per_measured": estimated / measured}


def estimate(size: str, adapter: str, checkpointing: bool) -> float:
    """What `prefdag estimate` would say of the same training, in bytes."""
    from prefdag.estimate.trace import peak, trace_training

    settings = training(size)
    trace = trace_training(
        config_of(size),
        ADAPTERS[adapter],
        settings,
        [PAIR.group] * settings.micro_batch_size,
        "adapter",
        checkpointing=checkpointing,
        accumulates=settings.micro_batch_size < settings.batch_size,
    )
    return peak(trace)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", nargs="?", choices=CONTENDERS, help="run this one only, in this process")
    parser.add_argument("--rounds", type=positive, default=3)
    args = parser.parse_args()
    if args.contender:
        size, adapter, *checkpointing = args.contender.split(", ")
        print(json.dumps(measure(size, adapter, bool(checkpointing))))
        return
    command = [sys.executable, "-m", "benchmarks.bench_estimate"]
    summary = summarise(run_rounds([Contender(name, [*command, name]) for name in CONTENDERS], args.rounds))
    write(RESULTS, summary)
    print(markdown(summary))


if __name__ == "__main__":
    end_in_one_line(main)
