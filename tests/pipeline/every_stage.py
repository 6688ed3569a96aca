"""Every stage that several processes can share, one after the other, in each of the processes that a launcher started.

    torchrun --nproc-per-node 2 every_stage.py RESULTS

This imports torch once, not once per stage. The outputs are copied into the folder RESULTS; `differences` compares them with
those of one process.
"""

import shutil
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd

from prefdag.runtime import stage as stages
from prefdag.runtime.dvc_files import names, read_dag

COMPUTED = ["ref_logps", "ref_evals", "evaluate_text", "answer_text", "judge_text", "evaluate_image"]
TRAINED = ["dpo_text", "dpo_image", "control_image", "sft_ref", "resnet_warmup"]
SHARDED = ["dpo_text", "sft_ref"]
BOUND = 0.01  # of the norm of each tensor; of each number in a history


def main(results: Path) -> None:
    """Run the stages: first those that others do not read, since an output that differs from dvc.lock is refused."""
    whole, sharded = Path("params.yaml"), Path("sharded.yaml")
    text = whole.read_text()
    assert text.count("  shard: none") == len(SHARDED)
    for name in [*COMPUTED, *TRAINED]:
        for shard in ("none", "full") if name in SHARDED else ("none",):
            if shard == "full":
                sharded.write_text(text.replace("  shard: none", "  shard: full"))
            stages.PARAMS = whole if shard == "none" else sharded
            sys.argv = [name]
            import_module(f"stages.{name}").main.run()
            from prefdag.distributed.process import process

            if process().is_main_process:
                for out in names(read_dag()[name], "outs", "metrics"):
                    copy_to(Path(out), results / f"{name}-{shard}" / out)


def copy_to(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target)


def differences(results: Path, project: Path) -> dict[str, float]:
    """How far each stage's outputs are from those of one process, in `project`: 0 if all bytes are the same.

    Otherwise the largest norm of a tensor's difference, as a share of its norm; and of the numbers in a history likewise.
    """
    found = {}
    for folder in sorted(results.iterdir()):
        outs = names(read_dag(project / "dvc.yaml")[folder.name.partition("-")[0]], "outs", "metrics")
        files = files_in(project, outs)
        assert files_in(folder, outs) == files
        found[folder.name] = max(difference(folder / file, project / file) for file in files)
    return found


def files_in(folder: Path, outs: list[str]) -> list[Path]:
    below = [path for out in outs for path in (folder / out, *(folder / out).rglob("*"))]
    return sorted(path.relative_to(folder) for path in below if path.is_file())


def difference(ours: Path, theirs: Path) -> float:
    from safetensors.torch import load_file

    if ours.read_bytes() == theirs.read_bytes():
        return 0.0
    if ours.suffix == ".safetensors":
        two, one = load_file(ours), load_file(theirs)
        assert two.keys() == one.keys()
        # lora_B starts at zero, so it is all movement.
        return max(float((two[name] - one[name]).double().norm() / one[name].double().norm()) for name in one)
    if ours.suffix == ".csv":
        two, one = pd.read_csv(ours), pd.read_csv(theirs)
        assert list(two) == list(one)
        return float((np.abs(two - one) / np.maximum(np.abs(one), 1e-2)).max(axis=None))
    return np.inf


if __name__ == "__main__":
    main(Path(sys.argv[1]))
