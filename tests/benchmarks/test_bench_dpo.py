"""The trainings that the benchmarks compare, on a tiny model: our losses and TRL's are equal at every step."""

import gzip
import json
import math
import sys
from pathlib import Path

import pytest
from tiny_models import write_model, write_tokenizer

from benchmarks.harness import Contender, run_rounds, summarise

pytestmark = pytest.mark.slow
pytest.importorskip("trl", reason="TRL is the peer that these tests compare with; it is in a lock of its own")


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Command-line options with a tiny model and rows in the format of hh-rlhf, some with two turns."""
    model = write_tokenizer(write_model(tmp_path / "model", "llama"))
    turns = ["\n\nHuman: a\n\nAssistant: b", ""]
    heads = [f"{turns[i % 2]}\n\nHuman: question {i}\n\nAssistant:" for i in range(12)]
    lines = [
        json.dumps({"chosen": f"{head} yes {i}", "rejected": f"{head} no, {'never ' * (i % 3)}{i}"})
        for i, head in enumerate(heads)
    ]
    rows = tmp_path / "rows.jsonl.gz"
    rows.write_bytes(gzip.compress("\n".join(lines).encode()))
    return [f"--rows={rows}", f"--model={model}", "--pairs=12", "--warmup=1"]


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_losses_equal_those_of_trl(adapter: str, inputs: list[str]) -> None:
    command = [sys.executable, "-m", "benchmarks.bench_dpo"]
    sides = [Contender(name, [*command, name, f"--adapter={adapter}", *inputs]) for name in ("ours", "trl")]
    medians = summarise(run_rounds(sides, 1), "trl").set_index(["what", "metric"])["median"]
    assert medians["ours", "loss_1"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(medians["ours", "loss_3"] - math.log(2)) > 1e-3
    assert medians["ours - trl", "loss_difference"] < 1e-5
