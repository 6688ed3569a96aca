"""Two processes share the work of a stage. What they compute has the bytes of one process; what they train, its values."""

from pathlib import Path

import pytest
from clones import Run, set_params, stages_run
from safetensors.torch import load_file
from team_server import free_port

LAUNCHER = {"PREFDAG_LAUNCHER": "torchrun --standalone --nproc-per-node 2"}
# Two machines, as srun would start them: one process on each, with the same folder.
NODES = """\
for node in 1 2; do
    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:{port} --rdzv-id {port} "$@" &
done
status=0
for job in $(jobs -p); do wait $job || status=$?; done
exit $status
"""
COMPUTED = ["ref_logps", "ref_evals", "evaluate_text", "answer_text", "judge_text", "evaluate_image"]
TRAINED = {
    "sft_ref": "models/reference",
    "dpo_text": "models/dpo_text",
    "dpo_image": "models/dpo_image",
}


def test_what_two_processes_compute_has_the_same_bytes(copy: Path, run: Run) -> None:
    before = (copy / "dvc.lock").read_bytes()
    output = run("dvc", "repro", "--single-item", "--force", *COMPUTED, **LAUNCHER).stdout
    assert stages_run(output) == COMPUTED
    assert (copy / "dvc.lock").read_bytes() == before  # commands, too


def test_what_two_machines_compute_has_the_same_bytes(copy: Path, run: Run, tmp_path: Path) -> None:
    before = (copy / "dvc.lock").read_bytes()
    (tmp_path / "nodes.sh").write_text(NODES.format(port=free_port()))
    run("dvc", "repro", "--single-item", "--force", "ref_logps", PREFDAG_LAUNCHER=f"bash {tmp_path}/nodes.sh")
    assert (copy / "dvc.lock").read_bytes() == before


@pytest.mark.parametrize(("stage", "shard"), [*((stage, "none") for stage in TRAINED), ("sft_ref", "full")])
def test_what_two_processes_train_has_the_same_values(stage: str, shard: str, copy: Path, tiny: Path, run: Run) -> None:
    """Within rounding, which Adam enlarges where a gradient is almost zero: sums over processes have another order."""
    if shard != "none":
        set_params(copy, {f"{stage}.shard": shard})
    run("dvc", "repro", "--single-item", "--force", stage, **LAUNCHER)
    (file,) = (copy / TRAINED[stage]).glob("*model.safetensors")
    two, one = load_file(file), load_file(tiny / file.relative_to(copy))
    assert two.keys() == one.keys()
    for name, weights in one.items():
        off = (two[name] - weights).float().norm()
        assert off <= 0.01 * weights.float().norm(), name  # lora_B starts at zero, so it is all movement
