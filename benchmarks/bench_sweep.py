"""A sweep over five betas, from a reference model and pairs to five policies: ours against TRL's DPOTrainer.

    python -m benchmarks.bench_sweep --rows FILE --model FOLDER [--pairs 32] [--rounds 3]

Rows are drawn from an hh-rlhf .jsonl.gz file; the model is a folder that transformers loads. The
settings are those of bench_dpo.

    ours  the pipeline's stages in a clone of the committed project: ref_logps once, dpo_text once per beta
    trl   one process per beta, which computes the reference's log-probabilities and trains

The timing runs from the start of the first process to the end of the last. The fewer pairs, the more of it is start-up.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.bench_pipeline import ROOT, clone_with
from benchmarks.dpo_training import RATE, TARGETS, TRAINING
from benchmarks.harness import Contender, end_in_one_line, markdown, run_rounds, summarise, write
from benchmarks.hh_rows import arguments, encode, sample

RESULTS = Path(__file__).with_name("bench_sweep.csv")
BETAS = (0.05, 0.1, 0.2, 0.3, 0.5)


def ours(rows: Path, folder: Path, n: int) -> None:
    """Run the two stages in a clone that already has the outputs of the stages before them."""
    from ruamel.yaml import YAML
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    frame = as_formatted([encode(texts, tokenizer) for texts in sample(rows, tokenizer, n)])
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name)
        clone_with("default", clone, recorded=False)
        (clone / "data/pairs").mkdir(parents=True)
        (clone / "models").mkdir(exist_ok=True)
        (clone / "models/reference").symlink_to(folder.resolve())
        for split, part in (("train", frame), ("val", frame[:1]), ("test", frame[:1])):
            part.to_parquet(clone / "data/pairs" / f"{split}.parquet", index=False)
        params: Any = YAML().load(clone / "params.yaml")
        params["dpo_text"]["adapter"].update(rank=8, alpha=16, target_modules=TARGETS)
        params["dpo_text"]["training"].update(
            batch_size=TRAINING.batch_size,
            micro_batch_size=TRAINING.micro_batch_size,
            learning_rate=RATE,
            warmup_fraction=0.0,
            schedule="constant",
            validate_every=TRAINING.validate_every,
        )
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{clone}/mlflow.db"}
        for number, beta in enumerate(BETAS):
            params["beta"] = beta
            YAML().dump(params, clone / "params.yaml")
            for stage in ("hash_code", "ref_logps", "dpo_text") if number == 0 else ("dpo_text",):
                subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=clone, env=environment, check=True)


def as_formatted(pairs: list[Any]) -> pd.DataFrame:
    """Pairs in the columns of data/pairs that training reads. All tokens of truncated responses are scored."""
    return pd.DataFrame(
        {
            "id": [str(i) for i in range(len(pairs))],
            "prompt_ids": [pair.prompt for pair in pairs],
            "chosen_ids": [pair.chosen for pair in pairs],
            "rejected_ids": [pair.rejected for pair in pairs],
            "chosen_truncated": False,
            "rejected_truncated": False,
            "preference": 1.0,
        }
    )


def trl(shared: list[Any]) -> None:
    """Run TRL five times, with the reference's log-probabilities computed beforehand."""
    for beta in BETAS:
        command = [sys.executable, "-m", "benchmarks.bench_dpo", "trl precomputed", "--beta", str(beta), *shared]
        subprocess.run(list(map(str, command)), cwd=ROOT, check=True)


def main() -> None:
    """The command line."""
    args = arguments(__doc__, ("ours", "trl"), pairs=32, rounds=3).parse_args()
    shared = ["--rows", args.rows.resolve(), "--model", args.model.resolve(), "--pairs", args.pairs]
    if args.contender:
        ours(args.rows, args.model, args.pairs) if args.contender == "ours" else trl(shared)
        print("{}")
        return
    command = [sys.executable, "-m", "benchmarks.bench_sweep"]
    frame = run_rounds([Contender(name, [*command, name, *shared]) for name in ("ours", "trl")], args.rounds)
    summary = summarise(frame, "ours")
    write(RESULTS, summary)
    print(markdown(summary))


if __name__ == "__main__":
    end_in_one_line(main)
