"""Every stage that several processes can share, one after the other, in each of the processes that a launcher started.

    torchrun --nproc-per-node 2 tests/pipeline/every_stage.py RESULTS [STAGE ...]

This imports torch once, not once per stage. Outputs are copied into the folder RESULTS; `differences` compares them with those
of one process, in a project that `make_project` has made. With names of stages, only these run.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefdag.rounds import plan
from prefdag.rounds.plan import read_plan
from prefdag.runtime import stage as stages
from prefdag.runtime.dvc_files import names, read_dag

COMPUTED = ["ref_logps", "ref_evals", "ref_answers", "evaluate_text", "answer_text", "judge_text", "evaluate_image"]
COMPUTED += ["sample_round@1", "judge_round@1", "evaluate_round@1"]
TRAINED = [
    "sft_ref",
    "reward_model",
    "resnet_warmup",
    "control_text",
    "dpo_text",
    "dpo_image",
    "control_image",
    "dpo_round@1",
]
SHARDED = ["sft_ref", "dpo_text", "ref_logps", "ref_evals", "ref_answers", "evaluate_text", "answer_text", "judge_text"]
ROUNDS = [name for name in COMPUTED + TRAINED if "@" in name]  # how they share their models is in their plans
STARTS = {
    "sft_ref": "models/base",
    "dpo_image": "models/resnet_reference",
    "control_image": "models/resnet_reference",
}
# What the outputs of two processes may differ by (see `differences`); where there is none, all bytes are the same.
BOUNDS = {
    "sft_ref": 1e-3,
    "dpo_text": 1e-3,
    "control_text": 1e-3,
    "reward_model": 1e-3,
    "dpo_round@1": 1e-3,
    "dpo_image": 1e-2,
    "control_image": 1e-2,
    "resnet_warmup": 1e-4,
}
# Outputs are made again.
LEFT_OUT = (
    ".dvc",
    ".git",
    ".prefdag",
    "dvc.lock",
    "mlflow*",
    "reference",
    "resnet_reference",
    "dpo_text",
    "dpo_image",
    "control_image",
    "control_text",
    "reward_model",
    "policy",
)


def run_stages(results: Path | None, *chosen: str) -> None:
    """Run these stages. With `results`, run those first that others do not read, and each as two processes can."""
    alone = ["plan_rounds", "select_policy"] if results is None else []  # what others read of them stays
    order = [name for name in read_dag() if name in (chosen or COMPUTED + TRAINED + alone)]
    for name in order if results is None else reversed(order):
        for shard in shards(name) if results else ("none",):
            stages.PARAMS = Path(f"shard-{shard}.yaml")
            plan.read_plan = lambda *which, shard=shard: replace(read_plan(*which), shard=shard)
            script, *number = name.split("@")
            sys.argv = [script, *number]
            import_module(f"stages.{script}").main.run()
            from prefdag.distributed.process import process

            if results and process().is_main_process:
                for out in names(read_dag()[name], "outs", "metrics"):
                    copy_to(Path(out), results / f"{name}-{shard}" / out)


def shards(name: str) -> tuple[str, ...]:
    """The ways in which several processes can hold the stage's model."""
    return ("none", "full") if name in SHARDED + ROUNDS else ("none",)


def copy_to(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target)


def make_project(tiny: Path, folder: Path) -> None:
    """Copy a project in which the pipeline has run, without DVC's records and what these stages make."""
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    text = (folder / "params.yaml").read_text()
    # ref_evals and ref_answers read that of evaluate_text and answer_text; the one of rounds is in the plan.
    assert text.count("  shard: none") == len(SHARDED) - 2 + 1
    assert text.count("  count: 0 ") == 1
    off = "  train: false                # true: train it, from the reference"
    assert text.count(off) == 1
    text = text.replace("  count: 0 ", "  count: 1 ").replace(off, "  train: true")
    for shard in ("none", "full"):
        (folder / f"shard-{shard}.yaml").write_text(text.replace("  shard: none", f"  shard: {shard}"))


def too_far(results: Path, project: Path, *chosen: str) -> dict[str, float]:
    """The `differences` that exceed their bound. Every stage must have run, or every chosen one."""
    found = differences(results, project)
    assert found.keys() == {f"{name}-{shard}" for name in chosen or COMPUTED + TRAINED for shard in shards(name)}
    return {run: off for run, off in found.items() if off > BOUNDS.get(run.partition("-")[0], 0.0)}


def differences(results: Path, project: Path) -> dict[str, float]:
    """How far each stage's outputs are from those of one process, in `project`: 0 if all bytes are the same.

    Otherwise the largest norm of a tensor's difference, as a share of the norm of its movement, or that of a number in a table.
    """
    found = {}
    for folder in sorted(results.iterdir()):
        name = folder.name.partition("-")[0]
        outs = names(read_dag(project / "dvc.yaml")[name], "outs", "metrics")
        files = files_in(project, outs)
        assert files_in(folder, outs) == files
        start = project / STARTS[name] / "model.safetensors" if name in STARTS else None
        found[folder.name] = max(difference(folder / file, project / file, start) for file in files)
    return found


def files_in(folder: Path, outs: list[str]) -> list[Path]:
    below = [path for out in outs for path in (folder / out, *(folder / out).rglob("*"))]
    return sorted(path.relative_to(folder) for path in below if path.is_file())


def difference(ours: Path, theirs: Path, start: Path | None) -> float:
    from safetensors.torch import load_file

    if ours.read_bytes() == theirs.read_bytes():
        return 0.0
    if ours.suffix == ".csv":
        two, one = pd.read_csv(ours), pd.read_csv(theirs)
        assert list(two) == list(one)
        return float((np.abs(two - one) / np.maximum(np.abs(one), 1e-2)).max(axis=None))
    if ours.suffix == ".json":
        two, one = (list(numbers(json.loads(path.read_text()))) for path in (ours, theirs))
        return max(abs(ours - theirs) / max(abs(theirs), 1e-2) for ours, theirs in zip(two, one, strict=True))
    assert ours.suffix == ".safetensors", ours
    two, one, before = load_file(ours), load_file(theirs), load_file(start) if start else {}
    assert two.keys() == one.keys()
    moved = {name: one[name].double() - before[name].double() if before else one[name].double() for name in one}
    off = {name: float((two[name].double() - one[name].double()).norm()) for name in one}
    return max(off[name] / float(moved[name].norm()) for name in one if off[name])


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers(each)
    else:
        yield float(value)


if __name__ == "__main__":
    run_stages(*([Path(sys.argv[1]), *sys.argv[2:]] if len(sys.argv) > 1 else [None]))
