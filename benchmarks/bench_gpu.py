"""DPO training of language models on a GPU in bfloat16: ours against TRL's DPOTrainer with its defaults.

    python -m benchmarks.bench_gpu --rows FILE --model FOLDER [--pairs 512] [--batch 32] [--rounds 3] [--only RUN]

LoRA and full fine-tuning of two models with random weights: one with the shape of the model in FOLDER, of which only the
config and the tokenizer are read, and one with the shape of SmolLM2-1.7B. All other settings are those of bench_dpo. The first
steps, which compile kernels, are not timed. Without a GPU the benchmark runs on the CPU, slowly, and its figures say nothing
about GPUs.
"""

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from benchmarks.bench_dpo import ADAPTERS
from benchmarks.harness import Contender, end_in_one_line, markdown, positive, run_rounds, summarise, write
from benchmarks.hh_rows import arguments

RESULTS = Path(__file__).with_name("bench_gpu.csv")
LARGE = {  # SmolLM2-1.7B
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 64,
}
SHAPES: dict[str, Mapping[str, int]] = {"small": {}, "1.7B": LARGE}
RUNS = {f"{size} {adapter}": (size, adapter) for size in SHAPES for adapter in ADAPTERS}


def random_model(model: Path, shape: Mapping[str, int], target: Path) -> Path:
    """Save a model with random weights, the architecture and tokenizer of `model`, and what `shape` changes, to `target`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(model, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = AutoConfig.from_pretrained(model)
    config.update(dict(shape))
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a CPU needs a minute for the larger one
        AutoModelForCausalLM.from_config(config).save_pretrained(target)
    return target


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
    parser.add_argument("--only", choices=RUNS, help="one model and adapter instead of all four")
    args = parser.parse_args()
    shared = [f"--{name}={getattr(args, name)}" for name in ("rows", "pairs", "batch", "warmup")]
    with tempfile.TemporaryDirectory() as scratch:
        runs = [RUNS[args.only]] if args.only else list(RUNS.values())
        folders = {size: random_model(args.model, SHAPES[size], Path(scratch) / size) for size in dict(runs)}
        summary = pd.concat(
            [
                compare(f"{size} {adapter}", adapter, [*shared, f"--model={folders[size]}"], args.rounds)
                for size, adapter in runs
            ]
        )
    write(RESULTS, summary)
    print(markdown(summary))


if __name__ == "__main__":
    end_in_one_line(main)
