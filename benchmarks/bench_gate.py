"""The data gate: time and memory for validating and formatting hh-rlhf rows, real ones and many synthetic ones.

    python -m benchmarks.bench_gate --rows FILE --model FOLDER [--synthetic 160000] [--rounds 3]

FILE is an hh-rlhf .jsonl.gz, FOLDER a model whose tokenizer and template format the pairs. The synthetic rows are
single-turn dialogues of words drawn from FILE. All other settings come from the profile hh-rlhf.
"""

import argparse
import gzip
import hashlib
import json
import random
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.bench_pipeline import clone_with
from benchmarks.harness import Contender, end_in_one_line, markdown, positive, run_rounds, summarise, write
from benchmarks.hh_rows import TURN

RESULTS = Path(__file__).with_name("bench_gate.csv")
BEFORE = ("hash_code", "download_pairs", "download_evals")
TIMED = ("validate_pairs", "format_pairs")


def synthesise(real: Path, path: Path, n: int, seed: int = 0) -> None:
    """Write `n` hh-rlhf rows to `path`, with word frequencies and text lengths as in `real`."""
    with gzip.open(real, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["chosen"].replace("Human:", " ").replace("Assistant:", " ").split() for line in file]
    words = [word for text in texts for word in text]
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(words, k=max(5, len(rng.choice(texts)) // 2)))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(n):
            prompt = f"\n\nHuman: {text()}{TURN} "
            file.write(json.dumps({"chosen": prompt + text(), "rejected": prompt + text()}) + "\n")


def project(folder: Path, rows: Path, model: Path) -> None:
    """Clone the committed project into `folder` and run the stages before the validation of `rows`."""
    from ruamel.yaml import YAML

    clone_with("hh-rlhf", folder, recorded=False)
    params: Any = YAML().load(folder / "params.yaml")
    sha256 = hashlib.sha256(rows.read_bytes()).hexdigest()
    params["download_pairs"]["source"] = {"kind": "path", "path": str(rows), "sha256": sha256}
    params["format_pairs"]["max_pairs"] = None
    YAML().dump(params, folder / "params.yaml")
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models/base").symlink_to(model)
    for stage in BEFORE:
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=folder, check=True)


def gate(real: Path, model: Path, synthetic: int, rounds: int) -> pd.DataFrame:
    """Time both stages on both sets of rows."""
    with tempfile.TemporaryDirectory() as name:
        many = Path(name) / "synthetic.jsonl"
        synthesise(real, many, synthetic)
        contenders = []
        for title, rows in (("hh-rlhf", real), (f"{synthetic:,} synthetic rows", many)):
            folder = Path(name) / title
            project(folder, rows, model)
            for stage in TIMED:
                command = f"{shlex.join([sys.executable, '-m', f'stages.{stage}'])} > /dev/null && echo '{{}}'"
                env = {"DVC_ROOT": str(folder)}
                contenders.append(Contender(f"{title}, {stage}", ["sh", "-c", command], folder, env))
        return summarise(run_rounds(contenders, rounds))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="hh-rlhf .jsonl.gz")
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--synthetic", type=positive, default=160_000)
    parser.add_argument("--rounds", type=positive, default=3)
    args = parser.parse_args()
    summary = gate(args.rows.resolve(), args.model.resolve(), args.synthetic, args.rounds)
    write(RESULTS, summary)
    print(markdown(summary))


if __name__ == "__main__":
    end_in_one_line(main)
