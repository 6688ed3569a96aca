"""Two processes share the work of every stage. What they compute has the bytes of one process; what they train, its values.

test_slurm.py does the same on two machines, with every stage. Where there is Slurm, three are enough here.
"""

import shutil
from pathlib import Path

from clones import Run, run_in, stages_run
from every_stage import too_far

from prefdag.runtime.dvc_files import files

PROCESSES = "torchrun --standalone --nproc-per-node 2"
# Either track is trained, with whole and with sharded models, and texts are generated.
SOME = ("sft_ref", "dpo_image", "answer_text")


def test_with_a_launcher_dvc_records_the_same(copy: Path, run: Run) -> None:
    locks = files(copy / "dvc.lock")
    before = [lock.read_bytes() for lock in locks]
    stages = ["ref_logps", "dag/images/dvc.yaml:evaluate_image"]
    output = run("dvc", "repro", "--single-item", "--force", *stages, PREFDAG_LAUNCHER=PROCESSES).stdout
    assert stages_run(output) == ["ref_logps", "evaluate_image"]
    assert [lock.read_bytes() for lock in locks] == before  # commands, too


def test_stages_in_two_processes(small: Path, tmp_path: Path) -> None:
    """Within rounding, which Adam enlarges where a gradient is almost zero: sums over processes have another order."""
    chosen = SOME if shutil.which("slurmctld") else ()
    project = shutil.copytree(small, tmp_path / "project", symlinks=True)
    command = [*PROCESSES.split(), "tests/pipeline/every_stage.py", str(tmp_path / "results"), *chosen]
    run_in(project, *command, PYTHONPATH=str(project))
    assert too_far(tmp_path / "results", small, *chosen) == {}
