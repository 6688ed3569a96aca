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
import sys
from pathlib import Path

from benchmarks.dpo_training import ADAPTERS, Run, train_ours, train_trl
from benchmarks.harness import Contender, end_in_one_line, markdown, positive, run_rounds, summarise, write
from benchmarks.hh_rows import arguments, encode, sample

RESULTS = Path(__file__).with_name("bench_dpo.csv")
OURS, TRL = ("ours", "ours sparing"), ("trl", "trl precomputed", "trl fastest")
SETTINGS = ("rows", "model", "pairs", "beta", "adapter", "precision", "batch", "warmup")  # shared by all contenders


def run_of(args: argparse.Namespace) -> Run:
    """The training that the options ask for."""
    micro_batch = 1 if args.contender == "ours sparing" else None
    return Run(args.adapter, args.pairs, args.batch, args.warmup, args.beta, args.precision, micro_batch)


def ours(args: argparse.Namespace) -> dict[str, float]:
    """Train the model in the folder with this project."""
    from transformers import AutoTokenizer

    from prefdag.distributed.process import process
    from prefdag.text import model as lm
    from prefdag.text import trainable

    process()  # before the first product on a GPU, as in a stage
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    pairs = [encode(texts, tokenizer) for texts in sample(args.rows, tokenizer, args.pairs)]
    policy = trainable.add_adapter(lm.load(args.model), ADAPTERS[args.adapter], 0, "adapter")
    return train_ours(policy, pairs, run_of(args))


def trl(args: argparse.Namespace, *, precompute: bool, checkpointing: bool) -> dict[str, float]:
    """Train it with TRL's DPOTrainer on the same texts in the same order."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts = sample(args.rows, tokenizer, args.pairs)
    pairs = [encode(each, tokenizer) for each in texts]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    rows = [each._asdict() for each in texts]
    options = {"precompute_ref_log_probs": precompute, "gradient_checkpointing": checkpointing}
    return train_trl(model, rows, tokenizer, pairs, run_of(args), **options)


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
