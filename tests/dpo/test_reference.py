"""References that follow their policy, by hand and in the trainer; and the check that the others do not change."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tasks import preference_of
from tiny_models import training
from torch import nn

from prefdag.config.constraints import Constraint
from prefdag.config.reference import Reference
from prefdag.dpo.pair_batch import PairBatch, Response
from prefdag.dpo.reference import FrozenCheck, MovingReference, fingerprint
from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import History, fit
from prefdag.train.task import Task, Tasks

pytestmark = pytest.mark.usefixtures("one_thread")


def following(policy: nn.Module, **config: Any) -> MovingReference:
    reference = copy.deepcopy(policy).requires_grad_(False).eval()
    every = {"alpha": None, "every": None, **config}
    return MovingReference(
        reference, lambda: dict(policy.named_parameters()) | dict(policy.named_buffers()), Reference(**every)
    )


def weight(module: nn.Module, value: float | None = None) -> float:
    """The one weight of a linear layer, set first if a value is given."""
    if value is not None:
        nn.init.constant_(module.get_parameter("weight"), value)
    return module.get_parameter("weight").item()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"update": "none"}, [0, 0, 0, 0]),
        ({"update": "polyak", "alpha": 0.5}, [(0 + 1) / 2, (0.5 + 2) / 2, (1.25 + 3) / 2, (2.125 + 4) / 2]),
        ({"update": "polyak", "alpha": 1.0}, [1, 2, 3, 4]),
        ({"update": "copy"}, [0, 2, 2, 4]),
        ({"update": "sync", "alpha": 1.0, "every": 3}, [0, 0, 3, 3]),
        ({"update": "sync", "alpha": 0.5, "every": 2}, [0, (0 + 2) / 2, (0 + 2) / 2, (1 + 4) / 2]),
    ],
)
def test_references_by_hand(config: dict[str, Any], expected: list[float]) -> None:
    """The policy's weight is 1, 2, 3, 4 after the four steps; an epoch is two steps. The reference starts at 0."""
    policy = nn.Linear(1, 1, bias=False)
    weight(policy, 0.0)
    reference = following(policy, **config)
    weights = []
    for step in range(1, 5):
        weight(policy, float(step))
        reference.after_step({}, epoch_ends=step % 2 == 0)
        weights.append(weight(reference.model))
    assert weights == expected
    assert not reference.model.get_parameter("weight").requires_grad


@pytest.mark.parametrize("update", ["polyak", "copy"])
def test_buffers_follow_too(update: str) -> None:
    """The seed project averaged the weights but kept another model's batch statistics. The count of batches is copied."""
    policy = nn.BatchNorm1d(2)
    reference = following(policy, update=update, alpha=0.25 if update == "polyak" else None)
    with torch.no_grad():
        policy.get_buffer("running_mean").fill_(4.0)
        policy.get_buffer("num_batches_tracked").fill_(7)
    reference.after_step({}, epoch_ends=True)
    assert reference.model.get_buffer("running_mean").tolist() == [0.25 * 4 if update == "polyak" else 4] * 2
    assert reference.model.get_buffer("num_batches_tracked").item() == 7


def test_a_change_of_one_bit_changes_the_fingerprint() -> None:
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    before = fingerprint(tensor)
    assert fingerprint(tensor.clone()) == before
    for i in (0, 31, 32, 998, 999):
        other = tensor.clone()
        other.view(torch.int32)[i] ^= 1
        assert fingerprint(other) != before
    swapped = tensor[[1, 0, *range(2, 1000)]]
    assert fingerprint(swapped) != before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8])
@pytest.mark.parametrize("first", [0, 1])
def test_changes_that_cancel_in_a_sum_change_the_fingerprint(dtype: torch.dtype, first: int) -> None:
    """Every other value changes its sign, in tensors of any dtype that start anywhere in memory."""
    tensor = torch.arange(1, 2050).to(dtype)[first:]
    other = tensor.clone()
    other[1::2] = -other[1::2]
    assert fingerprint(other) != fingerprint(tensor)
    assert fingerprint(-tensor[1::2]) != fingerprint(tensor[1::2])
    assert fingerprint(torch.cat([tensor, tensor])[len(tensor) :]) == fingerprint(tensor)


def test_frozen_tensors_that_change_are_counted() -> None:
    model = nn.BatchNorm1d(2)
    watch = FrozenCheck(model.parameters(), model.buffers())
    assert watch.metrics() == {"drift/reference": 0.0, "drift/buffers": 0.0}
    model(torch.randn(4, 2))  # train mode changes the mean, the variance and the count
    assert watch.metrics() == {"drift/reference": 0.0, "drift/buffers": 3.0}


# In the trainer

PAIRS = torch.randn(12, 2, 3, generator=torch.Generator().manual_seed(0))


def run(
    folder: Path, config: dict[str, Any], kill: int | None = None, constraints: Any = None, **changes: Any
) -> tuple[History, Any]:
    """DPO of a linear model that scores vectors, against a reference that may move."""

    def log(step: int, metrics: Any) -> None:
        if step == kill and "learning_rate" in metrics:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    policy = nn.Linear(3, 1)
    reference = following(policy, **config)
    preference = preference_of("sigmoid", constraints=constraints)

    def forward(model: nn.Module, rows: Sequence[int], epoch: int | None) -> PairBatch:
        chosen, rejected = (
            Response(logps, ref_logps, torch.ones(len(rows)))
            for logps, ref_logps in zip(
                *(scorer(PAIRS[list(rows)])[..., 0].unbind(1) for scorer in (model, reference.model)), strict=True
            )
        )
        return PairBatch(chosen, rejected)

    task = Task(forward, preference, [1.0] * 12, [str(i) for i in range(12)])
    history = fit(
        policy,
        Tasks(task, task),
        training(epochs=2, validate_every=2, checkpoint_every=2, **changes),
        seed=0,
        checkpoints=Checkpoints(folder),
        log=log,
        hooks=[preference, reference],
    )
    return history, reference


MOVING = [
    {"update": "polyak", "alpha": 0.3},
    {"update": "copy"},
    {"update": "sync", "alpha": 0.5, "every": 3},  # not in step with the checkpoints, saved every second step
]


@pytest.mark.slow
@pytest.mark.parametrize("config", MOVING, ids=lambda c: c["update"])
@pytest.mark.parametrize("kill", range(1, 6))
def test_a_run_with_a_moving_reference_resumes_exactly(tmp_path: Path, config: dict[str, Any], kill: int) -> None:
    """The checkpoint holds the reference's weights and its count of steps."""
    uninterrupted, reference = run(tmp_path / "uninterrupted", config)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", config, kill)
    history, resumed = run(tmp_path / "killed", config)
    assert history == uninterrupted
    assert all(torch.equal(t, resumed.moving[name]) for name, t in reference.moving.items())


def test_the_reference_is_the_policy_at_the_end_of_each_epoch(tmp_path: Path) -> None:
    """It is copied after steps 2 and 5 of six, so the first step of the second epoch has zero rewards again."""
    history, _ = run(tmp_path, {"update": "copy"}, learning_rate=0.1)
    rewards = [abs(row["rewards/margin"]) for row in history.train]
    assert [reward == 0 for reward in rewards] == [True, False, False, True, False, False]
    assert history.validation[-1]["rewards/margin"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kill", [3, 5])
def test_multipliers_resume_exactly(tmp_path: Path, kill: int) -> None:
    """The checkpoint holds the multipliers of dual ascent; without them, the loss after the kill would differ."""
    strict = {"kl": Constraint(threshold=1e-4, multiplier=0.5, dual_rate=10.0)}
    uninterrupted, _ = run(tmp_path / "uninterrupted", {"update": "none"}, constraints=strict)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", {"update": "none"}, kill, constraints=strict)
    resumed, _ = run(tmp_path / "killed", {"update": "none"}, constraints=strict)
    assert resumed == uninterrupted
    assert len({row["multiplier/kl"] for row in uninterrupted.validation}) > 2
