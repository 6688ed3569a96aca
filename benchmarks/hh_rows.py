"""Rows of hh-rlhf for the benchmarks: texts, and token ids made as TRL makes them, so that both sides train on the same."""

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import positive
from prefdag.text.scoring.logps import Pair

TURN = "\n\nAssistant:"
MAX_LENGTH = 512  # of prompt and response together; longer ones are cut at the end


class Texts(NamedTuple):
    prompt: str
    chosen: str
    rejected: str


def arguments(description: str, contenders: Sequence[str], pairs: int, rounds: int) -> argparse.ArgumentParser:
    """The command-line options shared by the benchmarks on these rows; `pairs` and `rounds` are defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if contenders:
        parser.add_argument("contender", nargs="?", choices=contenders, help="run only this one")
    parser.add_argument("--rows", type=Path, required=True, help="hh-rlhf .jsonl.gz")
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--pairs", type=positive, default=pairs)
    parser.add_argument("--rounds", type=positive, default=rounds)
    return parser


def sample(path: Path, tokenizer: Any, n: int, seed: int = 0) -> list[Texts]:
    """Draw `n` rows of an hh-rlhf .jsonl.gz file with `seed`, among those whose prompt leaves room for both responses."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    drawn: list[Texts] = []
    for i in np.random.default_rng(seed).permutation(len(rows)):
        chosen, rejected = rows[i]["chosen"], rows[i]["rejected"]
        cut = chosen.rindex(TURN) + len(TURN)
        texts = Texts(chosen[:cut], chosen[cut:], rejected[cut:])
        fits = rejected.startswith(texts.prompt) and texts.chosen.strip() and texts.rejected.strip()
        if fits and len(tokenizer(texts.prompt)["input_ids"]) < MAX_LENGTH - 1:
            drawn.append(texts)
        if len(drawn) == n:
            break
    return drawn


def encode(texts: Texts, tokenizer: Any) -> Pair:
    """Token ids as TRL makes them: prompt, response and EOS tokenised together; the prompt is what both rows share."""
    wholes = [
        tokenizer(texts.prompt + response + tokenizer.eos_token)["input_ids"]
        for response in (texts.chosen, texts.rejected)
    ]
    n = min(common(tokenizer(texts.prompt)["input_ids"], whole) for whole in wholes)
    chosen, rejected = (ids[n:MAX_LENGTH] for ids in wholes)
    return Pair(wholes[0][:n], chosen, rejected)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of leading tokens that both share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
