"""Exact resume: a run that is killed anywhere and run again ends in the same bits as an uninterrupted run."""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tasks import objective_of, task_of
from tiny_models import random_groups, training, weights, with_lora, write_model
from torch import Tensor, nn

from prefdag.config.training import Momentum, StepDecay
from prefdag.lifecycle.interruption import Interrupted
from prefdag.runtime.artifacts import sha256
from prefdag.text.sft_task import sft_task
from prefdag.train import loop as trainer
from prefdag.train.checkpoint import KEEP, Checkpoints, TrainState
from prefdag.train.loop import History, fit
from prefdag.train.task import LossAndMetrics, Task, Tasks

STEPS = 12
CONFIG = training(
    epochs=4, schedule="cosine", warmup_fraction=0.2, weight_decay=0.1, validate_every=3, checkpoint_every=2
)
Result = tuple[dict[str, Tensor], History]


pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(Exception):  # noqa: N818 - nothing went wrong
    """Stands for kill -9: nothing in the loop catches it."""


def convolutional() -> nn.Module:
    """Batch statistics and dropout: buffers and random numbers that a resumed run needs."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)
    ).train()


def classification() -> Task:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(12, 1, 6, 6, generator=generator), torch.arange(12) % 3

    def objective(model: nn.Module, rows: Sequence[int], epoch: int | None) -> LossAndMetrics:
        logits = model(images[list(rows)])
        right = (logits.argmax(1) == labels[list(rows)]).float()
        return F.cross_entropy(logits, labels[list(rows)], reduction="none"), {"accuracy": right}

    return task_of(objective, [1.0] * 12, [f"image {i}" for i in range(12)])


def killing() -> None:
    raise Killed


def start(
    folder: Path,
    kill: int | None = None,
    model: nn.Module | None = None,
    task: Task | None = None,
    how: Callable[[], None] = killing,
) -> Result:
    """What a new process does: it builds the model and fits it. It is killed when step `kill` is logged, before it is saved."""

    def log(step: int, metrics: Mapping[str, float]) -> None:
        if step == kill and "learning_rate" in metrics:
            how()

    model, task = model or convolutional(), task or classification()
    history = fit(model, Tasks(task, task), CONFIG, seed=0, checkpoints=Checkpoints(folder), log=log)
    return weights(model), history


def killed(folder: Path, step: int, **options: Any) -> None:
    with pytest.raises(Killed):
        start(folder, step, **options)


def same(a: Result, b: Result) -> bool:
    """Bit for bit: weights, buffers and all metrics, with their columns in the same order."""
    histories = [[list(row.items()) for row in (*result[1].train, *result[1].validation)] for result in (a, b)]
    return histories[0] == histories[1] and all(
        torch.equal(a[0][name], b[0][name]) for name in a[0].keys() | b[0].keys()
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The result of an uninterrupted run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = start(tmp_path_factory.mktemp("uninterrupted"))
    torch.set_num_threads(threads)
    return result


@pytest.mark.slow
def test_the_run_is_deterministic(tmp_path: Path, uninterrupted: Result) -> None:
    assert same(start(tmp_path), uninterrupted)
    assert [row["step"] for row in uninterrupted[1].train] == list(range(STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("step", range(STEPS))
def test_killed_once(tmp_path: Path, uninterrupted: Result, step: int) -> None:
    killed(tmp_path, step)
    assert same(start(tmp_path), uninterrupted)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path, uninterrupted: Result) -> None:
    for step in (2, 3, 3, 7, 8, 11):
        killed(tmp_path, step)
    assert same(start(tmp_path), uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 4, STEPS - 1])
def test_a_signal_ends_a_run_after_its_step(tmp_path: Path, uninterrupted: Result, number: int, step: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted):
        start(tmp_path, step, how=lambda: os.kill(os.getpid(), number))
    assert signal.getsignal(number) is before
    # `checkpoint_every` is 2: a checkpoint of an odd number is written because of the signal.
    assert f"step-{step + 1:08d}" in names(tmp_path)
    assert same(start(tmp_path), uninterrupted)


@pytest.mark.slow
def test_a_signal_ends_a_validation_at_once(tmp_path: Path, uninterrupted: Result) -> None:
    task = classification()
    validations: list[int] = []

    def objective(model: nn.Module, rows: Sequence[int], epoch: int | None) -> LossAndMetrics:
        if epoch is None:
            validations.append(len(validations))
            if len(validations) == 6:  # a validation has three passes of four rows: the second one ends before step 3
                os.kill(os.getpid(), signal.SIGTERM)
        return objective_of(task)(model, rows, epoch)

    with pytest.raises(Interrupted):
        start(tmp_path, task=task_of(objective, task.weights, task.ids))
    assert len(validations) == 6
    assert names(tmp_path)[-1] == "step-00000003"
    assert same(start(tmp_path), uninterrupted)


@pytest.mark.slow
def test_a_second_signal_ends_the_run_without_saving_the_step(tmp_path: Path, uninterrupted: Result) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit, match="130"):
        start(tmp_path, 4, how=twice)
    assert names(tmp_path)[-1] == "step-00000004"
    assert same(start(tmp_path), uninterrupted)


@pytest.mark.slow
def test_a_resumed_run_does_only_what_is_left(tmp_path: Path) -> None:
    killed(tmp_path, 9)
    steps: list[int] = []
    task = classification()

    def objective(model: nn.Module, rows: Sequence[int], epoch: int | None) -> LossAndMetrics:
        steps.extend([epoch] if epoch is not None else [])
        return objective_of(task)(model, rows, epoch)

    start(tmp_path, task=task_of(objective, task.weights, task.ids))
    assert steps == [2, 3, 3, 3]  # the epochs of steps 8 to 11: the last checkpoint was taken before step 8


@pytest.mark.slow
def test_weights_in_channels_last_order_resume_exactly(tmp_path: Path) -> None:
    """As in the ResNets: a fused optimiser goes through weights and moments in the order of their memory."""

    def model() -> nn.Module:
        return convolutional().to(memory_format=torch.channels_last)

    expected = start(tmp_path / "uninterrupted", model=model())
    killed(tmp_path / "killed", 7, model=model())
    assert same(start(tmp_path / "killed", model=model()), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_with_dropout_resume_exactly(tmp_path: Path, kind: str) -> None:
    """Killed where no validation follows immediately: one would hide a wrong train or eval mode (GPT-2 has its own dropout)."""
    folder = write_model(tmp_path / kind, kind)
    groups = random_groups(12, 1)
    task = sft_task(groups, [f"row {i}" for i in range(12)])

    def model() -> nn.Module:
        return with_lora(folder, dropout=0.2)

    expected = start(tmp_path / "uninterrupted", model=model(), task=task)
    killed(tmp_path / "killed", 5, model=model(), task=task)
    assert same(start(tmp_path / "killed", model=model(), task=task), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", ["adam", "sgd", Momentum(kind="sgd", momentum=0.9), Momentum(kind="rmsprop", momentum=0.9)], ids=str
)
def test_every_optimiser_resumes_exactly(tmp_path: Path, optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own state, plain SGD has none; the step schedule goes on as well."""
    schedule = StepDecay(kind="step", epochs=1, factor=0.7)
    config = dataclasses.replace(CONFIG, optimizer=optimizer, schedule=schedule)
    monkeypatch.setattr(sys.modules[__name__], "CONFIG", config)
    expected = start(tmp_path / "uninterrupted")
    killed(tmp_path / "killed", 7)
    assert same(start(tmp_path / "killed"), expected)


# The comparison above can fail


def tamper(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the tensors of the newest checkpoint and update its manifest to match."""
    newest = max(folder.glob("step-*"))
    path, manifest = newest / "state.safetensors", newest / "sha256.json"
    before = sha256(path)
    save_file(change(load_file(path)), path)
    manifest.write_text(manifest.read_text().replace(before, sha256(path)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "buffer", "optimizer"])
def test_everything_in_a_checkpoint_is_needed(tmp_path: Path, uninterrupted: Result, kind: str) -> None:
    """With the weights, batch statistics or AdamW moments of a new run, the result differs."""
    other = convolutional()
    fresh = TrainState(other, torch.optim.AdamW(other.parameters())).tensors()

    def without(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert any(name.startswith(f"{kind}/") for name in tensors)
        kept = {name: t for name, t in tensors.items() if not name.startswith(f"{kind}/")}
        return kept | {name: t for name, t in fresh.items() if name.startswith(f"{kind}/")}

    killed(tmp_path, 7)
    tamper(tmp_path, without)
    assert not same(start(tmp_path), uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["learning_rate", "batch_order", "seed_step"])
def test_the_place_in_the_training_is_needed(
    tmp_path: Path, uninterrupted: Result, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedule, data order and random numbers are in no checkpoint: they follow from the step. A resumed run that lost its
    place has another result."""
    killed(tmp_path, 7)
    original = getattr(trainer, lost)
    elsewhere: dict[str, Callable[..., Any]] = {
        "learning_rate": lambda step, *others: original(step - 6, *others),
        "batch_order": lambda n, config, seed: original(n, config, seed + 1),
        "seed_step": lambda seed, step, rank: original(seed, step - 6, rank),
    }
    monkeypatch.setattr(trainer, lost, elsewhere[lost])
    assert not same(start(tmp_path), uninterrupted)


def test_tampering_alone_changes_nothing(tmp_path: Path, uninterrupted: Result) -> None:
    killed(tmp_path, 7)
    tamper(tmp_path, lambda tensors: tensors)
    assert same(start(tmp_path), uninterrupted)


# Damage


def flip(path: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped bit": lambda folder: flip(folder / "state.safetensors"),
    "a cut file": lambda folder: cut(folder / "state.safetensors"),
    "no tensors": lambda folder: (folder / "state.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "sha256.json").unlink(),
    "half a manifest": lambda folder: cut(folder / "sha256.json"),
    "an empty manifest": lambda folder: (folder / "sha256.json").write_text("{}"),
    "no history": lambda folder: (folder / "history.json").unlink(),
    "half a history": lambda folder: cut(folder / "history.json"),
    "another history": lambda folder: change(folder / "history.json", '"loss": ', '"loss": 9'),
    "another step": lambda folder: change(folder / "history.json", '"step": 8,\n  "train"', '"step": 9,\n  "train"'),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    tmp_path: Path, uninterrupted: Result, damage: Callable[[Path], None]
) -> None:
    killed(tmp_path, 9)
    assert names(tmp_path) == ["step-00000006", "step-00000008"]
    damage(tmp_path / "step-00000008")
    assert same(start(tmp_path), uninterrupted)
    assert "damaged-step-00000008" in names(tmp_path)


@pytest.mark.slow
def test_the_run_starts_over_if_every_checkpoint_is_damaged(tmp_path: Path, uninterrupted: Result) -> None:
    killed(tmp_path, 9)
    for folder in tmp_path.iterdir():
        flip(folder / "state.safetensors")
    assert same(start(tmp_path), uninterrupted)


@pytest.mark.slow
def test_a_half_written_checkpoint_is_ignored(tmp_path: Path, uninterrupted: Result) -> None:
    killed(tmp_path, 5)
    half = tmp_path / ".step-00000006.123.tmp"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"")
    assert same(start(tmp_path), uninterrupted)


# Housekeeping


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    start(tmp_path)
    assert names(tmp_path) == ["step-00000008", "step-00000010"]
    assert len(names(tmp_path)) == KEEP


def test_clear_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed(folder, 5)
    Checkpoints(folder).clear()
    assert not folder.exists()
    Checkpoints(folder).clear()


def test_frozen_weights_are_not_saved(tmp_path: Path) -> None:
    """An adapter's checkpoint is as small as the adapter."""
    model = with_lora(write_model(tmp_path / "llama", "llama"))
    state = TrainState(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))
    saved = {name for name in state.tensors() if name.startswith("model/")}
    assert saved == {f"model/{name}" for name, p in model.named_parameters() if "lora_" in name}


PARAMS: dict[str, Any] = {"beta": 0.1, "loss": "sigmoid", "seed": 0}


@pytest.mark.parametrize("change", [{"beta": 0.3}, {"seed": 1}, {"loss": "ipo"}])
def test_another_parameter_has_other_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """So does other code. The same parameters and code have the same checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "dvc.yaml").write_text("stages: {dpo_text: {deps: [code.py]}}\n")
    (tmp_path / "code.py").write_text("a = 1\n")
    before = Checkpoints.of_stage("dpo_text", PARAMS)
    assert Checkpoints.of_stage("dpo_text", PARAMS) == before
    assert Checkpoints.of_stage("dpo_text", PARAMS | change) != before
    (tmp_path / "code.py").write_text("a = 2\n")
    assert Checkpoints.of_stage("dpo_text", PARAMS) != before
