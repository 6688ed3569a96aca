"""Memory stays flat over the steps of a long training and over the rows of a large file."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from paths import HELPERS
from tiny_models import write_model, write_tokenizer

from prefdag.runtime.yaml import read_yaml

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

MB = 1e6
PEAK = """
def peak():
    from pathlib import Path
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
"""


def measured(code: str, folder: Path, **values: Any) -> Any:
    """Runs the code in a separate process, whose peak memory is its own; returns its last line of output, parsed as JSON."""
    head = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    process = subprocess.run(
        [sys.executable, "-c", PEAK + head + textwrap.dedent(code)], cwd=folder, text=True, capture_output=True
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


# A long training

TRAINING = """
import sys
sys.path.insert(0, helpers)
import json, random
from pathlib import Path
import psutil, torch
from tiny_models import random_groups, training, with_lora
from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import fit
from prefdag.text.sft_task import sft_task
from prefdag.train.task import Tasks

torch.set_num_threads(1)
used, kept = {}, []

def log(step, metrics):
    if "learning_rate" in metrics:
        used[step] = psutil.Process().memory_info().rss
        kept.append(bytes(leak))

groups = random_groups(100, 1)
task = sft_task(groups, [f"row {i}" for i in range(100)])
config = training(epochs=20, batch_size=4, validate_every=100, checkpoint_every=50)
fit(with_lora(Path(model)), Tasks(task, task), config, seed=0, checkpoints=Checkpoints(Path("checkpoints")), log=log)
assert len(used) == 500
print(json.dumps([used[step] for step in range(0, 500)]))
"""


@pytest.mark.parametrize("leak", [0, 250_000])
def test_five_hundred_steps(leak: int, tmp_path: Path) -> None:
    """The last 400 steps need hardly more than the first 100, which fill the libraries' caches; a leak would show."""
    model = write_model(tmp_path / "model", "llama")
    used = measured(TRAINING, tmp_path, model=str(model), helpers=str(HELPERS), leak=leak)
    grown = max(used[100:]) - max(used[:100])
    assert (grown > 50 * MB) == (leak > 0), f"{grown / MB:.1f} MB"


# A large file

# A long path makes a row wide without adding tokens, so a few rows suffice to show whether they are kept. A reader holds a
# whole row group, so both files have groups of the same size.
ROWS = """
import pyarrow as pa, pyarrow.parquet as pq
schema = None
for first in range(0, n, 125):
    rows = [
        {"id": f"{i:016x}", "source": f"{'x' * width}.json:{i + 1}",
         "prompt": [{"role": "user", "content": f"question {i} about it"}],
         "chosen": f"yes {i % 97}", "rejected": f"no {i % 89} never", "preference": 1.0}
        for i in range(first, min(n, first + 125))
    ]
    table = pa.Table.from_pylist(rows, schema)
    if schema is None:
        schema, writer = table.schema, pq.ParquetWriter(out, table.schema)
    writer.write_table(table)
writer.close()
print(n)
"""
# The stages read 2,000 and 4,096 rows at a time; here a fortieth of that, because the file has fewer rows as well.
STAGE = """
import importlib
from prefdag.check_params import load_params
kept = []

def keeping(read):
    def batches(*args):
        for batch in read(*args):
            if keep:
                kept.append(batch)
            yield batch
    return batches

if stage == "format_pairs":
    from prefdag.pairs import batches, formatting
    batches.BATCH = 50
    batches.batches = formatting.batches = keeping(batches.batches)
else:
    from prefdag.text.scoring import rows
    read = rows.read_batches
    # All columns, since the stage itself leaves out the long paths.
    rows.PART, rows.read_batches = 102, keeping(lambda path, size, columns: read(path, size))
importlib.import_module(f"stages.{stage}").main(getattr(load_params(), stage))
print(peak())
"""
STAGES = ("format_pairs", "ref_logps")
WIDTH = 64_000


def peaks(folder: Path, root: Path, n: int, keep: bool) -> dict[str, float]:
    """The peak memory of each stage on `n` rows, in bytes; with `keep`, the stage keeps every row it reads."""
    write_tokenizer(write_model(folder / "models" / "base", "llama"))
    (folder / "models" / "reference").symlink_to("base")
    (folder / "data" / "validated").mkdir(parents=True)
    tree = read_yaml(root / "params.yaml")
    tree["format_pairs"] |= {"template": "instruction", "max_prompt_tokens": 96, "max_response_tokens": 32}
    (folder / "params.yaml").write_text(json.dumps(tree))
    measured(ROWS, folder, n=n, width=WIDTH, out="data/validated/pairs.parquet")
    return {stage: measured(STAGE, folder, stage=stage, keep=keep) for stage in STAGES}


def test_sixteen_times_the_rows(tmp_path: Path, root: Path) -> None:
    """2,000 rows instead of 125: keeping 1,875 rows of 64 kB would take 120 MB. Libraries cache less than half of that."""
    few, many, kept = (
        peaks(tmp_path / name, root, n, keep)
        for name, n, keep in (("few", 125, False), ("many", 2_000, False), ("kept", 2_000, True))
    )
    limit = 1_875 * WIDTH / 2
    for stage in STAGES:
        grown = many[stage] - few[stage]
        assert grown < limit, f"{stage}: {grown / MB:.0f} MB more"
        assert kept[stage] - few[stage] > limit, f"{stage}: rows that are kept are not seen"
