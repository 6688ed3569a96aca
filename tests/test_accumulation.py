"""A step does not depend on how its rows are cut into forward passes, whatever the loss: 8 = 4 + 4 = 2 + ... = 1 + ...

The best-known peer differs by 36 to 75% with rows of unequal length. Losses that look at a whole batch (KTO's KL, BCO's
shift, AOT's sorting) are cut as exactly as the others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tasks import preference_of
from tiny_models import disturb, random_groups, training, with_lora, write_model
from torch import Tensor, nn

from prefdag.config.constraints import Constraint
from prefdag.dpo.losses import LOSSES
from prefdag.dpo.preference import Preference
from prefdag.text.scoring.logps import Pair, score_all_pairs, score_pairs
from prefdag.train.step import forward_backward
from prefdag.train.task import ModelOutputs, Task

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
    """In double precision but for the logits, so that only mistakes differ."""
    return with_lora(write_model(tmp_path_factory.mktemp("models") / "llama", "llama")).double().eval()


@pytest.fixture(scope="module")
def task_for(policy: nn.Module) -> Any:
    """The task of a preference over pairs of lengths 1 to 12, soft labels where the loss takes them; the policy has moved."""
    groups = random_groups(N, longest=12)
    pairs = [Pair(g.prompt, *g.responses, groups[i - 1].responses[0]) for i, g in enumerate(groups)]
    reference = score_all_pairs(policy, pairs, 1000, "reference")
    disturb(policy)

    def make(preference: Preference, dropout: bool = False) -> Task:
        soft = not any(LOSSES[name].sorts for name in preference.terms)

        def score(model: nn.Module, rows: Sequence[int], epoch: int | None) -> ModelOutputs:
            found = score_pairs(model, [pairs[i] for i in rows], confidence=True)
            found |= {f"ref_{name}": values[list(rows)].to(found["chosen"]) for name, values in reference.items()}
            if soft:
                found["preference"] = torch.tensor([0.6 + 0.05 * i for i in rows])
            return {**found, "kl": found["mismatched"].detach() - found["ref_mismatched"]}

        return Task(score, preference, [1.0] * N, [f"pair {i}" for i in range(N)], preference.jointly)

    return make


def step(policy: nn.Module, task: Task, micro_batch_size: int) -> tuple[Mapping[str, float], dict[str, Tensor]]:
    policy.zero_grad()
    config = training(batch_size=N, micro_batch_size=micro_batch_size)
    metrics = forward_backward(Accelerator(), policy, task, range(N), 0, config, where="here", backward=True)
    return metrics, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("loss", "options"), CASES, ids=str)
def test_a_step_does_not_depend_on_the_micro_batch(
    policy: nn.Module, task_for: Any, loss: Any, options: dict[str, Any]
) -> None:
    task = task_for(preference_of(loss, 0.3, **options))
    metrics, whole = step(policy, task, N)
    assert max(g.abs().max() for g in whole.values()) > 1e-4
    for micro_batch_size in (4, 2, 1):
        cut_metrics, cut = step(policy, task, micro_batch_size)
        assert cut_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-7)
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [name for name in EVERY_LOSS if LOSSES[name].jointly])
def test_joint_losses_would_differ_if_each_micro_batch_were_taken_alone(
    policy: nn.Module, task_for: Any, loss: Any
) -> None:
    """The test above can fail: this is what a trainer does that knows nothing of joint losses."""
    task = task_for(preference_of(loss, 0.3))
    _, whole = step(policy, task, N)
    _, alone = step(policy, Task(task.score, task.loss, task.weights, task.ids), 2)
    assert any(not torch.allclose(alone[name], whole[name], rtol=1e-2, atol=1e-5) for name in whole)


def test_random_numbers_are_the_same_in_both_passes_of_a_joint_loss(tmp_path: Path) -> None:
    """With dropout, what the loss's gradient was taken at must be what the model's gradient is taken at.

    AOT of a policy that is its own reference but for the dropout of its adapters, against one pass over all rows of the
    same draws: both passes in micro-batches of one draw the same numbers only if the generator is put back.
    """
    model = with_lora(write_model(tmp_path / "llama", "llama"), dropout=0.5)
    disturb(model)
    pairs = [Pair(g.prompt, *g.responses) for g in random_groups(4)]
    seen: list[Tensor] = []

    def score(model: nn.Module, rows: Sequence[int], epoch: int | None) -> ModelOutputs:
        found = score_pairs(model, [pairs[i] for i in rows])
        seen.append(found["chosen"].detach().clone())
        return found

    def squares(said: ModelOutputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        return (said["chosen"] - said["chosen"].mean()) ** 2, {}

    task = Task(score, squares, [1.0] * 4, list("abcd"), jointly=True)
    config = training(batch_size=4, micro_batch_size=1)
    forward_backward(Accelerator(), model, task, range(4), 0, config, where="here", backward=True)
    assert torch.equal(torch.cat(seen[:4]), torch.cat(seen[4:]))
    assert not torch.equal(seen[0], score(model, [0], 0)["chosen"])  # there is dropout
