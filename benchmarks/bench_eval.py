"""Log-probabilities of responses, as evaluation and ref_logps compute them: ours against a plain transformers loop.

    python -m benchmarks.bench_eval --rows FILE --model FOLDER [--pairs 64] [--rounds 3]

Rows are drawn from an hh-rlhf .jsonl.gz file; the model is a folder that transformers loads. float32, no gradient.

    ours          both responses share a prompt, rows are packed up to 1,024 tokens, logits of scored tokens only, in chunks
    transformers  every response with its prompt, batches of 8 padded to the longest, logits of all tokens
"""

import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.arithmetic import Model
from benchmarks.dpo_training import product_rate
from benchmarks.harness import Contender, end_in_one_line, markdown, run_rounds, summarise, write
from benchmarks.hh_rows import arguments, encode, sample
from benchmarks.roofline import FORWARD, model_of
from prefdag.text.scoring.logps import Pair

RESULTS = Path(__file__).with_name("bench_eval.csv")
CONTENDERS = ("ours", "transformers")
BATCH = 8  # rows per batch of the plain loop
TOKENS = 1024  # per forward pass of ours, the pipeline's default


def ours(folder: Path, pairs: list[Pair]) -> tuple[float, float]:
    """Seconds, and the sum of all log-probabilities in nats, with the pipeline's scoring."""
    from prefdag.text import model as lm
    from prefdag.text.scoring.logps import all_pair_logps

    model = lm.load(folder)
    start = time.perf_counter()
    logps = all_pair_logps(model, pairs, TOKENS, "ours")
    return time.perf_counter() - start, float(logps.chosen.logps.sum() + logps.rejected.logps.sum())


@torch.no_grad()
def plain(folder: Path, pairs: list[Pair]) -> tuple[float, float]:
    """Seconds, and the sum of all log-probabilities in nats, with transformers alone."""
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [(pair.prompt, response) for pair in pairs for response in (pair.chosen, pair.rejected) if response]
    start, nats = time.perf_counter(), 0.0
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        ids = pad_sequence([torch.tensor([*prompt, *response]) for prompt, response in batch], batch_first=True)
        lengths = torch.tensor([[len(prompt), len(prompt) + len(response)] for prompt, response in batch])
        places = torch.arange(ids.shape[1])
        logits = model(input_ids=ids, attention_mask=(places < lengths[:, 1:]).long(), use_cache=False).logits
        logps = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        scored = (places[1:] >= lengths[:, :1]) & (places[1:] < lengths[:, 1:])
        nats += float(logps[scored].double().sum())
    return time.perf_counter() - start, nats


def figures(model: Model, pairs: list[Pair], seconds: float, rate: float) -> dict[str, float]:
    """The speed, and the share of `rate`, that of matrix products, that the arithmetic needed for the pairs makes of it."""
    lengths = [(len(pair.prompt), [len(each) for each in (pair.chosen, pair.rejected) if each]) for pair in pairs]
    needed = sum(model.flops(prompt, responses, FORWARD) for prompt, responses in lengths)
    return {"pairs_per_second": len(pairs) / seconds, "flops_share": needed / seconds / rate}


def main() -> None:
    """The command line."""
    args = arguments(__doc__, CONTENDERS, pairs=64, rounds=3).parse_args()
    if args.contender:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.model)
        pairs = [encode(texts, tokenizer) for texts in sample(args.rows, tokenizer, args.pairs)]
        before = product_rate("float32")
        seconds, nats = {"ours": ours, "transformers": plain}[args.contender](args.model, pairs)
        rate = (before + product_rate("float32")) / 2
        print(json.dumps(figures(model_of(args.model), pairs, seconds, rate) | {"nats_a_pair": nats / len(pairs)}))
        return
    shared = ["--rows", args.rows, "--model", args.model, "--pairs", args.pairs]
    command = [sys.executable, "-m", "benchmarks.bench_eval"]
    frame = run_rounds([Contender(name, [*command, name, *shared]) for name in CONTENDERS], args.rounds)
    summary = summarise(frame, "transformers")
    write(RESULTS, summary)
    print(markdown(summary))


if __name__ == "__main__":
    end_in_one_line(main)
