"""On a full disk every stage ends with one line and leaves no output. `make chaos` tries each, the slow tests each kind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clones import run_in
from full_disk import outs
from paths import ROOT

from prefdag.runtime.dvc_files import read_dag

STAGES = [name for name in read_dag(ROOT / "dvc.yaml") if "@" not in name]  # the rounds are off here
# A folder of tables, one of a model, an adapter with its checkpoints, single tables, and the report.
KINDS = {"format_pairs", "resnet_warmup", "dpo_text", "evaluate_text", "report"}
SLOW = [pytest.mark.slow, pytest.mark.chaos]
NAMESPACE = ["unshare", "--map-root-user", "--mount"]


@pytest.fixture(scope="session")
def namespaces() -> None:
    try:
        subprocess.run([*NAMESPACE, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount namespace to make a full disk in: {error}")


def run_full(tiny: Path, stage: str, free: int, place: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("full_disk.py")
    done = run_in(
        tiny, *NAMESPACE, sys.executable, str(script), str(tiny), stage, str(free), str(place), PYTHONPATH="."
    )
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=SLOW if stage in KINDS else [pytest.mark.chaos]) for stage in STAGES]
)
def test_a_full_disk_is_one_line(stage: str, tiny: Path, tmp_path: Path, namespaces: None) -> None:
    half = sum(size(tiny / out) for out in outs(tiny, stage)) // 2
    outcome = run_full(tiny, stage, half // 8192 * 4096, tmp_path)
    assert outcome["code"] == 1, outcome
    assert "Traceback" not in outcome["stderr"]
    last = outcome["stderr"].splitlines()[-1]
    assert last.startswith("error: "), outcome["stderr"]
    assert "No space left on device" in last
    assert (outcome["made"], outcome["left"]) == ([], [])


@pytest.mark.slow
def test_with_enough_space_the_output_is_complete(tiny: Path, tmp_path: Path, namespaces: None) -> None:
    """The test above can fail."""
    outcome = run_full(tiny, "label_pairs", 2**26, tmp_path)
    assert (outcome["code"], len(outcome["made"])) == (0, 1), outcome
