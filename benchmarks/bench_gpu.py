"""DPO training of language models on a GPU in bfloat16: ours against TRL's DPOTrainer with its defaults.

    python -m benchmarks.bench_gpu --rows FILE --model FOLDER [--pairs 512] [--batch 32] [--rounds 3]

LoRA and full fine-tuning of two models: the one in FOLDER, and one with its tokenizer, the shape of SmolLM2-1.7B and random
weights, which do not affect speed. All other settings are those of bench_dpo. The first steps, which compile kernels, are not
timed. Without a GPU the benchmark runs on the CPU, slowly, and its figures say nothing about GPUs.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.bench_dpo import ADAPTERS
from benchmarks.harness import Contender, end_in_one_line, markdown, positive, run_rounds, summarise, write
from benchmarks.hh_rows import arguments

RESULTS = Path(__file__).with_name("bench_gpu.csv")
LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 64,
}


def enlarge(model: Path, target: Path) -> None:
    """Save a model of shape `LARGE` with random weights, and the architecture and tokenizer of `model`, to `target`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(model, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = AutoConfig.from_pretrained(model)
    config.update(LARGE)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(target)


def compare(name: str, adapter: str, shared: list[str], rounds: int) -> pd.DataFrame:
    """Run both sides with one model and adapter. Returns the table of `summarise`."""
    command = [sys.executable, "-m", "benchmarks.bench_dpo"]
    own = ["--adapter", adapter, "--precision", "bfloat16", *shared]
    sides = [Contender(f"{side}, {name}", [*command, side, *own]) for side in ("ours", "trl")]
    return summarise(run_rounds(sides, rounds), sides[1].name)


def main() -> None:
    """The command line."""
    parser = arguments(__doc__, (), pairs=512, rounds=3)
    parser.add_argument("--batch", type=positive, default=32, help="pairs per step")
    parser.add_argument("--warmup", type=int, default=4, help="steps that are not timed")
    args = parser.parse_args()
    shared = [f"--{name}={getattr(args, name)}" for name in ("rows", "pairs", "batch", "warmup")]
    with tempfile.TemporaryDirectory() as scratch:
        large = Path(scratch) / "model"
        enlarge(args.model, large)
        summary = pd.concat(
            [
                compare(f"{size} {adapter}", adapter, [*shared, f"--model={folder}"], args.rounds)
                for size, folder in (("small", args.model), ("1.7B", large))
                for adapter in ADAPTERS
            ]
        )
    write(RESULTS, summary)
    print(markdown(summary))


if __name__ == "__main__":
    end_in_one_line(main)
