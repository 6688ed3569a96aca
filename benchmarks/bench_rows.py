"""Memory and time of the token ids of many pairs, in the stages that read them: this code against an earlier one.

    python -m benchmarks.bench_rows [--pairs 160000] [--before REVISION] [--rounds 3]

The pairs are synthetic: a prompt of 130 tokens and two responses of 90 each, with texts of that length. Nothing is computed
from them but packed rows. REVISION is a commit of this project; the default is the last one with Python lists of token ids.

    dpo_text   reads the pairs, keeps them, and packs each of them once, four at a time in random order, as in an epoch
    ref_logps  reads them in parts, and packs them in order

Results go to benchmarks/bench_rows.csv. Linux only.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bench_pipeline import ROOT, call
from benchmarks.harness import Contender, end_in_one_line, markdown, positive, run_rounds, summarise, write
from prefdag.pairs.encoding import PAIRS_SCHEMA

RESULTS = Path(__file__).with_name("bench_rows.csv")
BEFORE = "eef5e75"
LENGTHS = {"prompt": 130, "chosen": 90, "rejected": 90}  # tokens
VOCABULARY = 50_000
CHARACTERS = 4  # of a token
BATCH = 2_000  # rows at a time, as format_pairs writes them
STAGES = ("dpo_text", "ref_logps")
# Run by both revisions, so it calls only what both have.
CHILD = """
import json, random, sys, time
from pathlib import Path
from prefdag.text.scoring.packing import batches, pack
from prefdag.text.scoring.rows import pair_rows, parts_of, presence, read_split, soft_labels

def memory():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(status[name].split()[0]) * 1024 / 1e9 for name in ("RssAnon", "RssFile", "VmHWM")]

stage, folder = sys.argv[1], Path(sys.argv[2])
before, start = memory(), time.perf_counter()
if stage == "dpo_text":
    rows = read_split(folder, "train")
    pairs, labels, present = pair_rows(rows), soft_labels(rows), presence(rows)
    ids = rows.ids if hasattr(rows, "ids") else rows["id"].tolist()
    read = time.perf_counter() - start
    order = random.Random(0).sample(range(len(pairs)), len(pairs))
    for first in range(0, len(order), 4):
        pack([pairs[i].group for i in order[first : first + 4]])
else:
    read = 0.0
    for part in parts_of(folder, "train"):
        pairs = pair_rows(part)
        read -= time.perf_counter()
        for batch in batches([pair.group for pair in pairs], 4096):
            pack([pairs[i].group for i in batch])
        read += time.perf_counter()
    read = time.perf_counter() - start - read
after, total = memory(), time.perf_counter() - start
names = ("kept_gb", "mapped_gb", "peak_gb")
found = {name: now - then for name, now, then in zip(names, after, before)}
print(json.dumps({**found, "read_seconds": read, "pack_seconds": total - read}))
"""


def synthesise(path: Path, pairs: int, seed: int = 0) -> None:
    """Write pairs with random tokens and texts, as `format_pairs` writes them."""
    rng = np.random.default_rng(seed)
    text = rng.integers(97, 123, 10**6, dtype=np.uint8).tobytes().decode()
    with pq.ParquetWriter(path, PAIRS_SCHEMA) as writer:
        for first in range(0, pairs, BATCH):
            names = [f"{i:016x}" for i in range(first, min(pairs, first + BATCH))]
            columns = {"id": names, "source": [f"rows.jsonl:{int(name, 16) + 1}" for name in names]}
            columns["preference"] = [1.0] * len(names)
            for part, length in LENGTHS.items():
                starts = rng.integers(0, len(text) - CHARACTERS * length, len(names))
                columns[part] = [text[start : start + CHARACTERS * length] for start in starts]
                columns[f"{part}_ids"] = list(rng.integers(0, VOCABULARY, (len(names), length), dtype=np.int32))
                columns[f"{part}_truncated"] = [False] * len(names)
            writer.write_table(pa.table([columns[name] for name in PAIRS_SCHEMA.names], schema=PAIRS_SCHEMA))


def compare(pairs: int, before: str, rounds: int) -> pd.DataFrame:
    """Both revisions on the same pairs, for each stage."""
    with tempfile.TemporaryDirectory() as name:
        earlier, data = Path(name, "earlier"), Path(name, "pairs")
        call(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(earlier)], ROOT)
        call(["git", "checkout", "--quiet", "--detach", before], earlier)
        data.mkdir()
        synthesise(data / "train.parquet", pairs)
        contenders = [
            Contender(f"{stage}, {when}", [sys.executable, "-c", CHILD, stage, data], root, {"PYTHONPATH": str(root)})
            for stage in STAGES
            for when, root in (("now", ROOT), ("before", earlier))
        ]
        frame = run_rounds(contenders, rounds)
    of_stage = frame["contender"].str.partition(",")[0]
    summary = pd.concat([summarise(frame[of_stage == stage], f"{stage}, before") for stage in STAGES])
    ratio = summary["what"].str.contains(" / ")
    return summary[~(ratio & (summary["metric"] == "mapped_gb"))]  # the earlier code maps next to nothing


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=positive, default=160_000)
    parser.add_argument("--before", default=BEFORE)
    parser.add_argument("--rounds", type=positive, default=3)
    args = parser.parse_args()
    summary = compare(args.pairs, args.before, args.rounds)
    write(RESULTS, summary)
    print(markdown(summary))


if __name__ == "__main__":
    end_in_one_line(main)
