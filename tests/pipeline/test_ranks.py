"""Two processes share the work of every stage. What they compute has the bytes of one process; what they train, its values."""

import shutil
from pathlib import Path

import pytest
from clones import Run, run_in, stages_run
from every_stage import too_far
from team_server import free_port

from prefdag.runtime.dvc_files import files

# Two machines, as srun would start them: one process on each, with the same folder.
NODES = """\
for node in 1 2; do
    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:{port} --rdzv-id {port} "$@" &
done
status=0
for job in $(jobs -p); do wait $job || status=$?; done
exit $status
"""
PROCESSES = "torchrun --standalone --nproc-per-node 2"


def test_with_a_launcher_dvc_records_the_same(copy: Path, run: Run) -> None:
    locks = files(copy / "dvc.lock")
    before = [lock.read_bytes() for lock in locks]
    stages = ["ref_logps", "dag/images/dvc.yaml:evaluate_image"]
    output = run("dvc", "repro", "--single-item", "--force", *stages, PREFDAG_LAUNCHER=PROCESSES).stdout
    assert stages_run(output) == ["ref_logps", "evaluate_image"]
    assert [lock.read_bytes() for lock in locks] == before  # commands, too


@pytest.mark.parametrize("places", ["one machine", "two machines"])
def test_every_stage_in_two_processes(places: str, small: Path, tmp_path: Path) -> None:
    """Within rounding, which Adam enlarges where a gradient is almost zero: sums over processes have another order."""
    nodes = tmp_path / "nodes.sh"
    nodes.write_text(NODES.format(port=free_port()))
    project = shutil.copytree(small, tmp_path / "project", symlinks=True)
    launcher = PROCESSES.split() if places == "one machine" else ["bash", str(nodes)]
    command = [*launcher, "tests/pipeline/every_stage.py", str(tmp_path / "results")]
    run_in(project, *command, PYTHONPATH=str(project))
    assert too_far(tmp_path / "results", small) == {}
