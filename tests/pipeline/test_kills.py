"""A training that was killed and continued gives the same bytes as an uninterrupted one: at 24 points, and three times.

The slow tests have each point and each stage; `make chaos` has each point in each stage.
"""

import shutil
from pathlib import Path

import pytest
from killing import POINTS, RESULT, run_stage

from prefdag.runtime.artifacts import sha256

STAGES = {
    "sft_ref": "models/reference",
    "dpo_text": "models/dpo_text",
    "resnet_warmup": "models/resnet_reference",
    "dpo_image": "models/dpo_image",
}
State = tuple[str, dict[str, str]]


CHAOS, SLOW = [pytest.mark.chaos], [pytest.mark.chaos, pytest.mark.slow]


def each_stage(slow: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "stage", [pytest.param(stage, marks=SLOW if stage == slow else CHAOS) for stage in STAGES]
    )


def state(stage: str, folder: Path) -> State:
    """The bytes of a finished training: its output (weights, history), and its checkpoints (optimiser, random state)."""
    checkpoints = {path.name: sha256(path) for path in folder.glob(f".prefdag/checkpoints/{stage}/*/step-*")}
    return sha256(folder / STAGES[stage]), checkpoints


def begin(stage: str, folder: Path) -> None:
    """Prepare the folder as DVC does before it runs a stage: without the stage's output."""
    shutil.rmtree(folder / STAGES[stage])
    shutil.rmtree(folder / ".prefdag" / "checkpoints", ignore_errors=True)


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, State]:
    """The results of uninterrupted runs, by stage."""
    return {}


@pytest.fixture
def expected(stage: str, copy: Path, tiny: Path, uninterrupted: dict[str, State]) -> State:
    if stage not in uninterrupted:
        begin(stage, copy)
        code, output = run_stage(stage, copy)
        assert code == 0, output
        uninterrupted[stage] = state(stage, copy)
        assert len(uninterrupted[stage][1]) == 2
        assert uninterrupted[stage][0] == sha256(tiny / STAGES[stage])  # the pipeline gives the same
    begin(stage, copy)
    return uninterrupted[stage]


@pytest.mark.parametrize(
    ("stage", "point"),
    [
        pytest.param(stage, point, marks=CHAOS if (i + j) % len(STAGES) else SLOW)
        for i, stage in enumerate(STAGES)
        for j, point in enumerate(POINTS)
    ],
)
def test_killed_anywhere(stage: str, point: str, copy: Path, expected: State) -> None:
    nth = 3 if point.startswith("mid-step") else 2  # after a checkpoint
    code, output = run_stage(stage, copy, point, nth)
    assert code == -9, output
    assert not (copy / STAGES[stage]).exists()
    code, output = run_stage(stage, copy)
    assert (code, "continuing from step" in output) == (0, True), output
    assert state(stage, copy) == expected


@each_stage(slow="dpo_image")
def test_killed_three_times_in_one_run(stage: str, copy: Path, expected: State) -> None:
    """After the first checkpoint, then in the middle of the second, then in the next step."""
    points = [("after the rename", 1), ("mid-save, half of the tensors", 1), ("mid-step, updated and not noted", 2)]
    for point, nth in points:
        code, output = run_stage(stage, copy, point, nth)
        assert code == -9, output
    code, output = run_stage(stage, copy)
    assert (code, "continuing from step" in output) == (0, True), output
    assert state(stage, copy) == expected


@each_stage(slow="dpo_text")
def test_killed_while_the_result_is_written(stage: str, copy: Path, expected: State) -> None:
    code, output = run_stage(stage, copy, RESULT)
    assert code == -9, output
    assert not (copy / STAGES[stage]).exists()
    code, output = run_stage(stage, copy)
    assert code == 0, output
    assert state(stage, copy) == expected
    left = [path for path in (copy / STAGES[stage]).parent.iterdir() if path.name.endswith(".tmp")]
    assert left == []
