"""The training loop: a step must not depend on how its rows are split, validated or interrupted."""

import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from linear_tasks import Shaky, ignore, linear, regression, trained_with_statistics
from memory_limit import memory_limit
from tasks import objective_of, preference_of, task_of
from tiny_models import disturb, random_groups, training, weights, with_lora, write_both
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from prefdag.config.training import Momentum, StepDecay
from prefdag.dpo.hook import StepHook
from prefdag.dpo.pair_batch import PairBatch
from prefdag.dpo.preference import Preference
from prefdag.lifecycle.errors import NumericError
from prefdag.text.dpo_batch import pair_batch
from prefdag.text.scoring.logps import Pair, all_pair_logps, group_logps, pair_logps
from prefdag.text.scoring.packing import Group
from prefdag.text.sft_task import sft_task
from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import History, fit
from prefdag.train.optimizer import batch_order, learning_rate
from prefdag.train.outputs import map_tensors
from prefdag.train.step import PreparedModel, forward_backward
from prefdag.train.task import LossAndMetrics, Task, Tasks


def train(model: nn.Module, task: Task, folder: Path, validation: Task | None = None, **changes: Any) -> History:
    return fit(
        model,
        Tasks(task, validation or task),
        training(**changes),
        seed=3,
        checkpoints=Checkpoints(folder / "checkpoints"),
        log=ignore,
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_both(tmp_path_factory.mktemp("models"))


def dpo(model: nn.Module, groups: list[Group], beta: float = 0.5, preference: Preference | None = None) -> Task:
    """DPO against `model` as it is now."""
    preference = preference or preference_of("sigmoid", beta)
    pairs = [Pair(g.prompt, *g.responses, groups[i - 1].responses[0]) for i, g in enumerate(groups)]
    reference = all_pair_logps(model, pairs, 1000, "reference")

    def forward(model: nn.Module, rows: Sequence[int], epoch: int | None) -> PairBatch:
        chunk = [pairs[i] for i in rows]
        of_rows = map_tensors(lambda values: values[list(rows)], reference)
        return pair_batch(chunk, pair_logps(model, chunk, confidence=True), of_rows)

    return Task(forward, preference, [1.0] * len(groups), [f"pair {i}" for i in range(len(groups))], preference.jointly)


# Data order and learning rate


def test_an_epoch_is_a_permutation_of_the_rows() -> None:
    steps = batch_order(10, training(epochs=3, batch_size=4), seed=5)
    assert [epoch for epoch, _ in steps] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    orders = [[row for e, rows in steps if e == epoch for row in rows] for epoch in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert all(1 <= len(rows) <= 4 for _, rows in steps)
    assert len({tuple(order) for order in orders}) == 3


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    first = batch_order(10, training(epochs=1), seed=5)
    torch.manual_seed(1)
    np.random.seed(1)
    assert batch_order(10, training(epochs=3), seed=5)[: len(first)] == first
    assert batch_order(10, training(epochs=1), seed=6) != first
    flat = [row for _, rows in first for row in rows]
    assert [row for _, rows in batch_order(10, training(batch_size=3), seed=5) for row in rows] == flat


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 2, 2 / 2, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [1 / 2, 2 / 2, 1.0, 1 - 1 / 4, 1 - 2 / 4, 1 - 3 / 4]),
        (
            "cosine",
            [1 / 2, 2 / 2, 1.0, *((1 + math.cos(math.pi * progress)) / 2 for progress in (1 / 4, 2 / 4, 3 / 4))],
        ),
    ],
)
def test_learning_rates_by_hand(schedule: str, expected: list[float]) -> None:
    """6 steps, of which ceil(0.3 * 6) = 2 are warm-up; the progress of the others is 0, 1/4, 2/4 and 3/4."""
    config = training(learning_rate=2.0, warmup_fraction=0.3, schedule=schedule)
    rates = [learning_rate(step, 6, 0, config) / 2 for step in range(6)]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_step_decay_by_hand() -> None:
    """Two warm-up steps, then the rate times 0.5 after every two epochs of two steps, counting those of the warm-up."""
    decay = StepDecay(kind="step", epochs=2, factor=0.5)
    config = training(learning_rate=2.0, warmup_fraction=0.2, schedule=decay)
    rates = [learning_rate(step, 10, step // 2, config) for step in range(10)]
    assert rates == [2 * 1 / 2, 2 * 2 / 2, 2, 2, *[2 * 0.5] * 4, *[2 * 0.5**2] * 2]


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(0, 1, 0, training(schedule="cosine")) == training().learning_rate


# A step


def test_a_step_by_hand(tmp_path: Path) -> None:
    """Two rows with weights 1 and 3; w = 2, and the weighted losses are 1 * w and 3 * w.

    AdamW's first step is rate * g / |g|, after a decay of rate * 0.5 * w.
    """
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2)

    def objective(model: nn.Module, rows: Sequence[int], epoch: int | None) -> LossAndMetrics:
        factor = torch.tensor([[1.0], [3.0]], dtype=torch.float64)[list(rows)]
        return model(factor)[:, 0], {"factor": factor[:, 0]}

    task = task_of(objective, [1.0, 3.0], ["a", "b"])
    history = train(model, task, tmp_path, learning_rate=0.1, weight_decay=0.5, max_grad_norm=10.0)
    loss, grad_norm, after = (1 * 2 + 3 * 2) / (1 + 3), (1 + 3) / (1 + 3), 2 - 0.1 * 0.5 * 2 - 0.1
    first = {"loss": loss, "grad_norm": grad_norm, "factor": (1 + 3) / 2}
    assert history.train == [pytest.approx({"step": 0, "epoch": 0, "learning_rate": 0.1, **first})]
    assert model.weight.item() == pytest.approx(after, abs=1e-6)
    assert [row["loss"] for row in history.validation] == pytest.approx([loss, after], abs=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adamw", [2 - 0.1 * 0.5 * 2 - 0.1 * 1 / 1]),
        ("adam", [2 - 0.1 * 2 / 2]),
        ("sgd", [2 - 0.1 * 2]),
        ({"kind": "sgd", "momentum": 0.5}, [2 - 0.1 * 2, 1.8 - 0.1 * (1 + 0.5 * 1.8 + 0.5 * 2)]),
        ("rmsprop", [2 - 0.1 * 2 / (0.01**0.5 * 2)]),
        ({"kind": "rmsprop", "momentum": 0.5}, [2 - 0.1 * 2 / (0.01**0.5 * 2)]),
    ],
    ids=str,
)
def test_optimisers_by_hand(optimizer: Any, expected: list[float], tmp_path: Path) -> None:
    """w = 2, loss w, gradient 1, weight decay 0.5, rate 0.1.

    AdamW decays the weight, then moves it by rate * g / |g|. All others add the decay to the gradient: g = 1 + 0.5 * 2 = 2.
    With momentum, the second step adds half of the first step's g. RMSprop divides by sqrt(0.01 * g^2).
    """
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2)

    def objective(model: nn.Module, rows: Sequence[int], epoch: int | None) -> LossAndMetrics:
        return model(torch.ones(len(rows), 1, dtype=torch.float64))[:, 0], {}

    if isinstance(optimizer, dict):
        optimizer = Momentum(**optimizer)
    config = {"learning_rate": 0.1, "weight_decay": 0.5, "max_grad_norm": 10.0, "optimizer": optimizer}
    history = train(model, task_of(objective, [1.0], ["a"]), tmp_path, epochs=len(expected), validate_every=1, **config)
    assert [row["loss"] for row in history.validation[1:]] == pytest.approx(expected, abs=1e-5)


def test_gradients_are_scaled_down_to_the_norm_and_reported_before(tmp_path: Path) -> None:
    """AdamW's first step does not depend on the gradient's scale, so the gradient itself is measured."""
    model, norms = linear(), []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, args, kwargs: norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
    )
    try:
        history = fit(
            model,
            Tasks(regression(4), regression(4)),
            training(max_grad_norm=0.01),
            seed=0,
            checkpoints=Checkpoints(tmp_path),
            log=ignore,
        )
    finally:
        handle.remove()
    assert history.train[0]["grad_norm"] > 0.1
    assert float(norms[0]) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 5, 8])
def test_weights_do_not_depend_on_the_micro_batch(micro_batch_size: int, tmp_path: Path) -> None:
    """In float64: 19 rows of unequal weight in batches of 8 = 5 + 3 = 3 + 3 + 2, and a smaller last batch."""
    unsplit, split = linear(), linear()
    config = {"batch_size": 8, "epochs": 3}
    expected = train(unsplit, regression(19), tmp_path / "a", micro_batch_size=8, **config)
    history = train(split, regression(19), tmp_path / "b", micro_batch_size=micro_batch_size, **config)
    torch.testing.assert_close(split.state_dict(), unsplit.state_dict(), rtol=1e-9, atol=1e-12)
    assert history.train == [pytest.approx(row, rel=1e-6) for row in expected.train]


def gradients(model: nn.Module, task: Task, micro_batch_size: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    model.zero_grad()
    prepared = PreparedModel(Accelerator(), model, micro_batch_size)
    metrics = forward_backward(prepared, task, range(8), 0, where="here", backward=True)
    return metrics, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_gradients_of_language_models_do_not_depend_on_the_micro_batch(
    models: dict[str, Path], kind: str, objective: str
) -> None:
    """8 = 4 + 4 = 2 + 2 + 2 + 2 = 1 + ..., lengths from 1 to 12, in float64 except for the logits."""
    groups = random_groups(8, longest=12)
    policy = with_lora(models[kind]).double().eval()
    task = sft_task(groups, [""] * 8) if objective == "sft" else dpo(policy, groups)
    disturb(policy)
    metrics, expected = gradients(policy, task, 8)
    assert max(g.abs().max() for g in expected.values()) > 1e-2
    for micro_batch_size in (4, 2, 1):
        split_metrics, split = gradients(policy, task, micro_batch_size)
        assert split_metrics == pytest.approx(metrics, rel=1e-5)
        torch.testing.assert_close(split, expected, rtol=1e-5, atol=1e-6)


def test_the_loss_of_fine_tuning_is_a_mean_over_tokens(models: dict[str, Path]) -> None:
    """Not a mean over rows or micro-batches: a row of 9 tokens counts nine times as much as a row of one."""
    groups = [Group([1], ([2] * 9,)), Group([3, 4], ([5],))]
    model = with_lora(models["llama"]).eval()
    a, b = group_logps(model, groups, 100, "test")
    prepared = PreparedModel(Accelerator(), model, 1)
    metrics = forward_backward(prepared, sft_task(groups, ["a", "b"]), [0, 1], 0, where="here", backward=False)
    assert metrics["loss"] == pytest.approx(-(a + b) / 10, rel=1e-6)
    assert not math.isclose(metrics["loss"], -(a / 9 + b) / 2, rel_tol=0.01)


def test_the_launcher_cannot_change_the_scale_of_the_gradient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`accelerate launch` passes on a user's gradient_accumulation_steps; only params.yaml sets the batch."""
    plain = train(linear(), regression(8), tmp_path / "a")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert train(linear(), regression(8), tmp_path / "b").train == plain.train


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_policy_starts_at_its_reference(models: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """Even if the base model has its own dropout (GPT-2: 0.1): the reference was scored without, so the policy must be too."""
    policy = with_lora(models[kind])
    first = train(policy, dpo(policy, random_groups(8)), tmp_path).train[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert (first["rewards/chosen"], first["rewards/rejected"]) == pytest.approx((0, 0), abs=1e-4)


@pytest.mark.slow
def test_overfits_eight_pairs(models: dict[str, Path], tmp_path: Path) -> None:
    policy = with_lora(models["llama"], rank=8)
    history = train(
        policy, dpo(policy, random_groups(8)), tmp_path, epochs=20, batch_size=8, micro_batch_size=8, learning_rate=3e-2
    )
    assert history.train[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    last = history.validation[-1]
    assert last["loss"] < 0.1
    assert last["rewards/accuracy"] == 1.0
    assert last["rewards/margin"] > 2


# Records


def test_history_numbers_steps_and_measures_before_the_update(tmp_path: Path) -> None:
    logged: list[tuple[int, set[str]]] = []
    history = fit(
        linear(),
        Tasks(regression(10), regression(3, seed=1)),
        training(epochs=2, batch_size=4, validate_every=4),
        seed=0,
        checkpoints=Checkpoints(tmp_path),
        log=lambda step, metrics: logged.append((step, set(metrics))),
    )
    assert [row["step"] for row in history.train] == [0, 1, 2, 3, 4, 5]
    assert [row["epoch"] for row in history.train] == [0, 0, 0, 1, 1, 1]
    assert [row["step"] for row in history.validation] == [0, 4, 6]
    names = {"learning_rate", "grad_norm", "loss", "error"}
    assert all(set(row) == {"step", "epoch", *names} for row in history.train)
    assert [step for step, metrics in logged if metrics == names] == [0, 1, 2, 3, 4, 5]
    assert [step for step, metrics in logged if metrics == {"val/loss", "val/error"}] == [0, 4, 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "rows", "steps"),
    [(0.5, 8, [0, 2, 4]), (0.5, 80, [0, 20, 40]), (0.4, 10, [0, 2, 4, 5]), (0.01, 4, [0, 1, 2]), (0.99, 8, [0, 4])],
)
def test_a_share_of_the_steps_validates_as_often_with_any_number_of_rows(
    every: float, rows: int, steps: list[int], tmp_path: Path
) -> None:
    history = train(linear(), regression(rows), tmp_path, batch_size=2, epochs=1, validate_every=every)
    assert [row["step"] for row in history.validation] == steps


def test_training_and_validation_agree_on_the_loss_before_an_update(tmp_path: Path) -> None:
    history = train(linear(), regression(8), tmp_path, batch_size=8, epochs=3, validate_every=1)
    assert [row["loss"] for row in history.train] == pytest.approx([row["loss"] for row in history.validation[:3]])


def test_validation_does_not_change_training(tmp_path: Path) -> None:
    often, seldom = Shaky(), Shaky()
    config = {"epochs": 3, "micro_batch_size": 2}
    train(often, regression(8), tmp_path / "a", validation=regression(5, seed=1), validate_every=1, **config)
    train(seldom, regression(8), tmp_path / "b", validation=regression(2, seed=2), validate_every=100, **config)
    assert all(torch.equal(a, b) for a, b in zip(weights(often).values(), weights(seldom).values(), strict=True))


def test_every_part_of_the_model_keeps_its_mode(tmp_path: Path) -> None:
    """For example, a base model in eval mode under adapters with dropout."""
    model = Shaky()
    modes: list[bool] = []
    model.body.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    task = regression(4)
    train(model, task, tmp_path)
    assert modes == [False, True, False]
    assert model.body[2].training
    assert not model.frozen.training


def test_a_model_in_eval_mode_is_trained_in_eval_mode(tmp_path: Path) -> None:
    """Like the image policy, whose batch statistics stay those of the reference."""
    model = Shaky().eval()
    before = weights(model)
    train(model, regression(8), tmp_path, epochs=2)
    assert not model.training
    changed = {name for name, t in weights(model).items() if not torch.equal(t, before[name])}
    assert changed == {name for name, _ in model.named_parameters()}


# Errors


@pytest.mark.parametrize("where", ["loss", "gradient", "metric"])
def test_a_step_that_is_not_finite_changes_nothing_and_names_its_rows(where: str, tmp_path: Path) -> None:
    """The second of three steps. The square root of 0 is finite, its gradient is not."""
    model, task = linear(), regression(12)
    last: list[dict[str, Tensor]] = []
    calls = 0

    def objective(model: nn.Module, rows: Sequence[int], epoch: int | None) -> LossAndMetrics:
        nonlocal calls
        losses, metrics = objective_of(task)(model, rows, epoch)
        if epoch is None:
            return losses, metrics
        calls += 1
        if calls == 2:
            last.append(weights(model))
            if where == "loss":
                losses = losses * math.inf
            elif where == "gradient":
                losses = losses + (losses - losses.detach()).sqrt()
            else:
                metrics = {"error": metrics["error"] * math.nan}
        return losses, metrics

    with pytest.raises(NumericError, match=r"^step 1: .*not finite; rows row-\d+, row-\d+, row-\d+, row-\d+;") as info:
        train(model, task_of(objective, task.weights, task.ids), tmp_path, validation=task)
    rows = batch_order(12, training(), seed=3)[1][1]
    assert all(f"row-{row}" in str(info.value) for row in rows)
    assert all(torch.equal(t, last[0][name]) for name, t in weights(model).items())


def test_a_first_step_that_is_not_finite_names_its_rows(tmp_path: Path) -> None:
    """Instead of advising to compute the reference again."""
    task = regression(4)

    def objective(model: nn.Module, rows: Sequence[int], epoch: int | None) -> LossAndMetrics:
        losses, metrics = objective_of(task)(model, rows, epoch)
        return losses * math.nan, metrics

    class Check(StepHook):
        def before_update(self, step: int, metrics: Mapping[str, float]) -> None:
            raise NumericError("step 0: the policy differs from its reference")

    with pytest.raises(NumericError, match=r"not finite; rows row-"):
        fit(
            linear(),
            Tasks(task_of(objective, task.weights, task.ids), task),
            training(),
            seed=0,
            checkpoints=Checkpoints(tmp_path),
            log=ignore,
            hooks=[Check()],
        )


@pytest.mark.parametrize("name", ["loss", "error"])
def test_only_the_row_that_is_not_finite_is_named(tmp_path: Path, name: str) -> None:
    """In any micro-batch, and even if only a metric shows it."""
    task = regression(9)

    def objective(model: nn.Module, rows: Sequence[int], epoch: int | None) -> LossAndMetrics:
        losses, metrics = objective_of(task)(model, rows, epoch)
        poison = torch.tensor([math.inf if row == 5 else 1.0 for row in rows], dtype=torch.float64)
        return (losses * poison, metrics) if name == "loss" else (losses, {"error": metrics["error"].abs() * poison})

    with pytest.raises(NumericError, match=rf"^step \d: {name} inf: not finite; rows row-5;"):
        train(linear(), task_of(objective, task.weights, task.ids), tmp_path, validation=task, micro_batch_size=2)


def test_a_model_that_is_not_finite_at_the_end_is_an_error(tmp_path: Path) -> None:
    """The last update can break a model whose every training step was finite."""
    task = regression(4)

    def objective(model: nn.Module, rows: Sequence[int], epoch: int | None) -> LossAndMetrics:
        losses, metrics = objective_of(task)(model, rows, epoch)
        return losses * (math.nan if float(model.weight.abs().max()) > 1e6 else 1.0), metrics

    with pytest.raises(NumericError, match="validation"):
        train(linear(), task, tmp_path, validation=task_of(objective, task.weights, task.ids), learning_rate=1e9)


def test_a_hook_sees_every_step_before_its_update(tmp_path: Path) -> None:
    model, losses = linear(), []
    before = weights(model)

    class Check(StepHook):
        def before_update(self, step: int, metrics: Mapping[str, float]) -> None:
            losses.append(metrics["loss"])
            assert all(torch.equal(t, before[name]) for name, t in weights(model).items()) == (step == 0)

    history = fit(
        model,
        Tasks(regression(8), regression(8)),
        training(),
        seed=0,
        checkpoints=Checkpoints(tmp_path),
        log=ignore,
        hooks=[Check()],
    )
    assert losses == [row["loss"] for row in history.train]
    assert len(losses) > 1


# Batch statistics


def test_no_batch_has_a_single_row_if_others_have_more() -> None:
    """In train mode, batch normalisation refuses a single row of 1x1 pixels: 65 rows are 33 + 32, not 64 + 1."""
    sizes = [len(rows) for _, rows in batch_order(65, training(batch_size=64), seed=0)]
    assert sorted(sizes) == [32, 33]


# Several processes

SCRIPT = """
import shutil
import sys
from pathlib import Path

import torch
from prefdag.distributed.process import process
from prefdag.distributed.sharing import shared_out
from safetensors.torch import save_file
from linear_tasks import Shaky, ignore, regression, spread, trained_with_statistics
from tiny_models import training

from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import fit
from prefdag.train.task import Tasks
from prefdag.lifecycle.errors import ParamsError

out = Path(sys.argv[1])
out.mkdir(exist_ok=True)
rank = process().process_index
for n in (1, 2, 5):  # batches of one row
    assert shared_out([[i] for i in range(n)], lambda batch: 10 * batch[0], "row", "") == [10 * i for i in range(n)]
for n in (1, 9, 23):
    model = Shaky().eval()
    history = fit(
        model, Tasks(regression(n), regression(13, seed=1)),
        training(batch_size=8, micro_batch_size=3, epochs=3, validate_every=2, checkpoint_every=2),
        seed=3, checkpoints=Checkpoints(out / str(n)), log=ignore,
    )
    losses = torch.tensor([row["loss"] for row in history.train + history.validation])
    save_file({**model.state_dict(), "losses": losses}, out / f"{n}-{rank}.safetensors")
    model = Shaky().eval()
    history = fit(
        model, Tasks(spread(n), spread(13)), training(batch_size=8, micro_batch_size=3, epochs=2, validate_every=2),
        seed=3, checkpoints=Checkpoints(out / f"joint-{n}"), log=ignore,
    )
    losses = torch.tensor([row["loss"] for row in history.train + history.validation])
    save_file({**model.state_dict(), "losses": losses}, out / f"joint-{n}-{rank}.safetensors")
for size in (8, 3, 2):  # 1, 3 and 4 micro-batches: none or unequally many for one of two
    save_file(trained_with_statistics(24, size, out / f"size-{size}"), out / f"size-{size}-{rank}.safetensors")
    if len(sys.argv) > 2:
        resumed = trained_with_statistics(24, size, Path(sys.argv[2]) / f"size-{size}")
        save_file(resumed, out / f"resumed-{size}-{rank}.safetensors")
try:
    config = training(batch_size=3)
    fit(Shaky(), Tasks(regression(3), regression(3)), config, seed=0, checkpoints=Checkpoints(out / "x"), log=ignore)
except ParamsError as error:
    (out / f"refused-{rank}").write_text(str(error))
"""


# Of a bias before batch normalisation, whose gradient is zero: Adam divides its rounding errors, which depend on the number of
# processes and on the processor, by an epsilon of 1e-8. Up to 4e-8 was seen.
ROUNDING = 1e-6


@pytest.mark.slow
def test_two_processes_make_the_same_model_as_one(tmp_path: Path, root: Path) -> None:
    """Also if a batch has fewer rows than processes (n = 1, 9), if processes have unequal numbers of micro-batches (13
    validation rows), for a loss that depends on all rows of all processes, and with the statistics of micro-batches."""
    from safetensors.torch import load_file

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(root), str(root / "tests/helpers")])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([sys.executable, script, tmp_path / "one"], check=True, env=environment, cwd=root)
    command = [sys.executable, *torchrun, script, tmp_path / "two", tmp_path / "one"]
    done = subprocess.run(command, check=True, env=environment, cwd=root, stderr=subprocess.PIPE, text=True)
    assert (
        done.stderr.count("only 1 of 2 processes have work") == 2
    )  # of 8 rows in one micro-batch, and of its resumption
    for n in (1, 9, 23):
        for rank in (0, 1):
            one, two = (
                load_file(tmp_path / name / f"joint-{n}-{r}.safetensors") for name, r in (("one", 0), ("two", rank))
            )
            torch.testing.assert_close(two, one, rtol=1e-8, atol=ROUNDING)
        one = load_file(tmp_path / "one" / f"{n}-0.safetensors")
        for rank in (0, 1):
            two = load_file(tmp_path / "two" / f"{n}-{rank}.safetensors")
            torch.testing.assert_close(two, one, rtol=1e-8, atol=ROUNDING)
        assert sorted(path.name for path in (tmp_path / "two" / str(n)).glob("*")) == sorted(
            path.name for path in (tmp_path / "one" / str(n)).glob("*")
        )
    for size in (8, 3, 2):
        one = load_file(tmp_path / "one" / f"size-{size}-0.safetensors")
        for rank in (0, 1):
            for name in ("size", "resumed"):  # the latter from the checkpoint of one process
                two = load_file(tmp_path / "two" / f"{name}-{size}-{rank}.safetensors")
                torch.testing.assert_close(two, one, rtol=1e-8, atol=ROUNDING)
        resumed = trained_with_statistics(24, size, tmp_path / "two" / f"size-{size}")
        torch.testing.assert_close(resumed, one, rtol=1e-8, atol=ROUNDING)
    for rank in (0, 1):
        assert "training.batch_size: 3 rows over 2 processes" in (tmp_path / "two" / f"refused-{rank}").read_text()


KILLED = """
import os
import sys
from pathlib import Path

from linear_tasks import Shaky, ignore, regression
from prefdag.distributed.process import process
from safetensors.torch import save_file
from tiny_models import training

from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import fit
from prefdag.train.task import Tasks

out, victim, calls, limited = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
rank = process().process_index


class Killed(Shaky):
    left = calls

    def forward(self, x):
        self.left -= 1
        if rank == victim and self.left == 0:
            Path(limited).write_text(str(os.getpid()))
            [bytearray(10**6) for _ in range(1000)]
        return super().forward(x)


model = Killed()  # with dropout, and batch statistics of its own on each rank
fit(
    model, Tasks(regression(23), regression(13, seed=1)),
    training(batch_size=8, micro_batch_size=4, epochs=4, validate_every=2, checkpoint_every=2),
    seed=3, checkpoints=Checkpoints(out), log=ignore,
)
save_file(model.state_dict(), out / f"{rank}.safetensors")
"""


@pytest.mark.chaos
def test_a_killed_process_ends_the_others_and_the_next_run_resumes(tmp_path: Path, root: Path) -> None:
    """One of two processes takes more memory than it may, so the kernel kills it."""
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    paths = os.pathsep.join([str(root), str(root / "tests/helpers")])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]

    def run(name: str, victim: int = 0, calls: int = -1, limited: Path = Path()) -> "subprocess.CompletedProcess[str]":
        command = [*torchrun, tmp_path / name, str(victim), str(calls), limited]
        return subprocess.run(command, env=environment, cwd=root, timeout=60, capture_output=True, text=True)

    assert run("whole").returncode == 0
    with memory_limit(200 * 2**20) as limited:
        done = run("killed", 1, 12, limited)
    assert done.returncode == 1
    assert "Signal 9 (SIGKILL) received" in done.stderr
    assert list(tmp_path.glob("killed/step-*"))
    assert not list(tmp_path.glob("killed/*.safetensors"))
    assert run("killed").returncode == 0
    for rank in (0, 1):
        killed, whole = (tmp_path / name / f"{rank}.safetensors" for name in ("killed", "whole"))
        assert killed.read_bytes() == whole.read_bytes()
