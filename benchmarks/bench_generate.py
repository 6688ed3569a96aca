"""Answers to held-out prompts: `decoding.continuations` against transformers' `generate` with the same batches.

    python -m benchmarks.bench_generate FOLDER [--prompts 32] [--tokens 48] [--rounds 3]

FOLDER is a finished run of the pipeline: its models/reference answers the test prompts of its data/pairs, in one batch, in
float32 on one thread.

    1, 4, 8 that many sampled answers per prompt
    both    a greedy and a sampled one, as the stage answer_text needs them; `generate` takes a call for each
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from benchmarks.harness import Contender, end_in_one_line, markdown, positive, run_rounds, summarise, write

RESULTS = Path(__file__).with_name("bench_generate.csv")
KINDS = ("1", "4", "8", "both")
TEMPERATURE, TOP_P = 0.7, 0.95  # the pipeline's defaults

Answers = list[list[int]]


def ours(folder: Path, prompts: Answers, kind: str, tokens: int, stop: int) -> tuple[float, Answers]:
    """CPU seconds, and the answers."""
    from prefdag.text import model as lm
    from prefdag.text.generation.decoding import continuations

    model = lm.load(folder, packed=False)
    kinds: list[list[int] | None] = [None, [0]] if kind == "both" else [[i] for i in range(int(kind))]
    seeds = [[None if each is None else [i, *each] for each in kinds] for i in range(len(prompts))]
    start = time.process_time()
    answers = continuations(
        model,
        prompts,
        seeds,
        sampling=(TEMPERATURE, TOP_P),
        max_new_tokens=tokens,
        stop_ids=[stop],
        batch_size=len(prompts),
        name="ours",
    )
    return time.process_time() - start, [answer for each in answers for answer in each]


def transformers(folder: Path, prompts: Answers, kind: str, tokens: int, stop: int) -> tuple[float, Answers]:
    """CPU seconds, and the answers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    width = max(map(len, prompts))
    inputs = {
        "input_ids": torch.tensor([[stop] * (width - len(each)) + each for each in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts]),
    }
    sampled = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0}
    calls = [{"do_sample": False}, sampled] if kind == "both" else [sampled | {"num_return_sequences": int(kind)}]
    start, answers = time.process_time(), []
    for call in calls:
        torch.manual_seed(0)
        output = model.generate(**inputs, **call, max_new_tokens=tokens, eos_token_id=stop, pad_token_id=stop)
        answers += [until(row, stop) for row in output[:, width:].tolist()]
    return time.process_time() - start, answers


def until(ids: Sequence[int], stop: int) -> list[int]:
    """The ids up to the first `stop`, with it."""
    return list(ids[: ids.index(stop) + 1] if stop in ids else ids)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a finished run of the pipeline")
    parser.add_argument("--prompts", type=positive, default=32)
    parser.add_argument("--tokens", type=positive, default=48, help="per answer, at most")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--only", nargs=2, metavar=("CONTENDER", "KIND"), help="run only this one")
    args = parser.parse_args()
    if args.only:
        contender, kind = args.only
        torch.set_num_threads(1)
        model = args.folder / "models/reference"
        stop = json.loads((model / "config.json").read_text("utf-8"))["eos_token_id"]
        table = pd.read_parquet(args.folder / "data/pairs/test.parquet")
        prompts = [list(map(int, each)) for each in dict.fromkeys(map(tuple, table["prompt_ids"]))][: args.prompts]
        seconds, answers = {"ours": ours, "transformers": transformers}[contender](
            model, prompts, kind, args.tokens, stop
        )
        count = sum(map(len, answers))
        print(json.dumps({"tokens_per_cpu_second": count / seconds, "cpu_seconds": seconds, "tokens": count}))
        return
    shared = [args.folder, "--prompts", str(args.prompts), "--tokens", str(args.tokens)]
    command = [sys.executable, "-m", "benchmarks.bench_generate", *shared]
    contenders = [
        Contender(f"{name}, {kind}", [*command, "--only", name, kind])
        for kind, name in product(KINDS, ("ours", "transformers"))
    ]
    frame = run_rounds(contenders, args.rounds)
    parts = [summarise(frame[frame["contender"].str.endswith(f", {kind}")], f"transformers, {kind}") for kind in KINDS]
    summary = pd.concat(parts, ignore_index=True)
    write(RESULTS, summary)
    print(markdown(summary))


if __name__ == "__main__":
    end_in_one_line(main)
