"""A step does not depend on how its rows are split into forward passes, whatever the loss: 8 = 4 + 4 = 2 + ... = 1 + ...

The best-known library differs by 36 to 75% with rows of unequal length. Joint losses (KTO's KL, BCO's shift, AOT's sorting)
are split as exactly as the others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tasks import preference_of
from tiny_models import disturb, random_groups, with_lora, write_model
from torch import Tensor, nn

from prefdag.config.constraints import Constraint
from prefdag.dpo.losses import LOSSES
from prefdag.dpo.pair_batch import PairBatch
from prefdag.dpo.preference import Preference
from prefdag.text.dpo_batch import pair_batch
from prefdag.text.scoring.logps import Pair, PairLogps, all_pair_logps, pair_logps
from prefdag.train.outputs import map_tensors
from prefdag.train.step import PreparedModel, forward_backward
from prefdag.train.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY_LOSS: list[Any] = [name for name in LOSSES if name != "sft"]
SUMS: list[Any] = [{"sigmoid": 1.0, "sft": 1.0}, {"sigmoid": 0.8, "bco": 0.2, "sft": 1.0}]
OPTIONS: list[dict[str, Any]] = [
    {"wpo": True},
    {"ld_alpha": 0.3},
    {"reduction": "mean"},
    {"f_divergence": "js"},
    {"constraints": {"kl": Constraint(threshold=0.01, multiplier=0.5, dual_rate=0.1)}},
]
CASES = [(loss, {}) for loss in [*EVERY_LOSS, *SUMS]] + [("sigmoid", options) for options in OPTIONS]

N = 8


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """In float64 except for the logits, so that differences come from mistakes, not from rounding."""
    return with_lora(write_model(tmp_path_factory.mktemp("models") / "llama", "llama")).double().eval()


@pytest.fixture(scope="module")
def task_for(policy: nn.Module) -> Any:
    """The task of a preference over pairs of lengths 1 to 12, with soft labels if the loss takes them; the policy has moved."""
    groups = random_groups(N, longest=12)
    pairs = [Pair(g.prompt, *g.responses, groups[i - 1].responses[0]) for i, g in enumerate(groups)]
    reference = all_pair_logps(policy, pairs, 1000, "reference")
    disturb(policy)

    def make(preference: Preference, dropout: bool = False) -> Task:
        soft = not any(LOSSES[name].sorts for name in preference.terms)

        def forward(model: nn.Module, rows: Sequence[int], epoch: int | None) -> PairBatch:
            chunk = [pairs[i] for i in rows]
            of_rows = map_tensors(lambda values: values[list(rows)], reference)
            batch = pair_batch(chunk, pair_logps(model, chunk, confidence=True), of_rows)
            return batch._replace(preference=torch.tensor([0.6 + 0.05 * i for i in rows])) if soft else batch

        return Task(forward, preference, [1.0] * N, [f"pair {i}" for i in range(N)], preference.jointly)

    return make


def step(policy: nn.Module, task: Task, micro_batch_size: int) -> tuple[Mapping[str, float], dict[str, Tensor]]:
    policy.zero_grad()
    prepared = PreparedModel(Accelerator(), policy, micro_batch_size)
    metrics = forward_backward(prepared, task, range(N), 0, where="here", backward=True)
    return metrics, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "options"), CASES, ids=str)
def test_a_step_does_not_depend_on_the_micro_batch(
    policy: nn.Module, task_for: Any, loss: Any, options: dict[str, Any]
) -> None:
    task = task_for(preference_of(loss, 0.3, **options))
    metrics, expected = step(policy, task, N)
    assert max(g.abs().max() for g in expected.values()) > 1e-4
    for micro_batch_size in (4, 2, 1):
        split_metrics, gradients = step(policy, task, micro_batch_size)
        assert split_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-7)
        torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [name for name in EVERY_LOSS if LOSSES[name].jointly])
def test_joint_losses_would_differ_if_each_micro_batch_were_taken_alone(
    policy: nn.Module, task_for: Any, loss: Any
) -> None:
    """So the test above can fail: a trainer unaware of joint losses takes each micro-batch alone."""
    task = task_for(preference_of(loss, 0.3))
    _, joint = step(policy, task, N)
    _, alone = step(policy, Task(task.forward, task.loss, task.weights, task.ids), 2)
    assert any(not torch.allclose(alone[name], joint[name], rtol=1e-2, atol=1e-5) for name in joint)


def test_random_numbers_are_the_same_in_both_passes_of_a_joint_loss(tmp_path: Path) -> None:
    """With dropout, both passes must see the same model outputs: those at which the loss's gradient was taken.

    In micro-batches of one, both passes draw the same numbers only if the state of the generator is restored.
    """
    model = with_lora(write_model(tmp_path / "llama", "llama"), dropout=0.5)
    disturb(model)
    pairs = [Pair(g.prompt, *g.responses) for g in random_groups(4)]
    seen: list[Tensor] = []

    def forward(model: nn.Module, rows: Sequence[int], epoch: int | None) -> PairLogps:
        logps = pair_logps(model, [pairs[i] for i in rows])
        seen.append(logps.chosen.logps.detach().clone())
        return logps

    def squares(outputs: PairLogps) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen = outputs.chosen.logps
        return (chosen - chosen.mean()) ** 2, {}

    task = Task(forward, squares, [1.0] * 4, list("abcd"), jointly=True)
    forward_backward(PreparedModel(Accelerator(), model, 1), task, range(4), 0, where="here", backward=True)
    assert torch.equal(torch.cat(seen[:4]), torch.cat(seen[4:]))
    assert not torch.equal(seen[0], forward(model, [0], 0).chosen.logps)  # there is dropout
