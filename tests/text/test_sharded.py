"""A model divided over two processes is trained as one process trains it, saved whole, and resumed on any number of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import write_model

pytestmark = pytest.mark.slow

SCRIPT = """
import dataclasses, os, signal, sys
from pathlib import Path

from linear_tasks import ignore
from tasks import preference_of
from text_project import dpo_settings, frame_of
from tiny_models import lora

from prefdag.config.adapter import Full
from prefdag.config.dpo_text import TextReference
from prefdag.distributed.process import process
from prefdag.distributed.sharding import is_sharded, reshard
from prefdag.lifecycle.interruption import Interrupted
from prefdag.text import trainable
from prefdag.text.dpo_run import dpo_run, new_policy
from prefdag.text.scoring.logps import all_pair_logps
from prefdag.text.scoring.rows import chosen_groups
from prefdag.text.sft_task import sft_task
from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import fit
from prefdag.train.task import Tasks

models, out, stop_after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
names = sys.argv[4:]
world = process().num_processes
frames = {"train": frame_of(7), "val": frame_of(3, seed=1)}  # uneven: 3 and 4 rows a step
LIVE = TextReference(logps="live", update="none", alpha=None, every=None)
STEPS = {"epochs": 2, "batch_size": 4, "micro_batch_size": 1, "learning_rate": 1e-2, "validate_every": 2, "checkpoint_every": 1}
MOVING = TextReference(logps="live", update="polyak", alpha=0.3, every=None)
CASES = {
    "llama lora": ("llama", lora(rank=4, alpha=8), {}, "sigmoid"),
    "llama full": ("llama", Full(kind="full"), {}, "sigmoid"),
    "gpt2 full": ("gpt2", Full(kind="full"), {}, "sigmoid"),
    "gpt2 lora": ("gpt2", lora(rank=4, alpha=8), {"gradient_checkpointing": True}, "sigmoid"),
    "llama full live": ("llama", Full(kind="full"), {"reference": LIVE}, "sigmoid"),
    "llama full moving": ("llama", Full(kind="full"), {"reference": MOVING}, "sigmoid"),
    "llama lora moving": ("llama", lora(rank=4, alpha=8), {"reference": MOVING}, "sigmoid"),
    "llama lora kto": ("llama", lora(rank=4, alpha=8), {}, "kto"),
    "llama full kto": ("llama", Full(kind="full"), {}, "kto"),
}


def log(step, metrics):
    if step == stop_after and "learning_rate" in metrics:
        os.kill(os.getpid(), signal.SIGTERM)  # of the first process alone; all of them stop after this step


def train(model, tasks, training, hooks, name):
    assert is_sharded(model) == (world > 1)
    try:
        checkpoints = Checkpoints(out / name / "checkpoints")
        history = fit(model, tasks, training, seed=3, checkpoints=checkpoints, log=log, hooks=hooks)
    except Interrupted:
        return False
    reshard(model)
    if process().is_main_process:
        (out / name / "history").write_text(repr([[row["loss"], row["grad_norm"]] for row in history.train]))
        (out / name / "drift").write_text(repr([row.get("drift/reference") for row in history.validation]))
    return True


for name, (kind, adapter, changes, loss) in CASES.items():
    if names and name not in names:
        continue
    settings = dpo_settings(**STEPS)
    settings = dataclasses.replace(settings, adapter=adapter, shard="full", **changes)
    policy = new_policy(models / kind, settings, seed=0)
    cached = lambda split, frame, pairs: all_pair_logps(trainable.before_training(policy), pairs, 100, split)
    run = dpo_run(policy, frames, preference_of(loss, 0.5), settings, cached, str)
    (out / name).mkdir(parents=True, exist_ok=True)
    if train(policy, run.tasks, settings.training, run.hooks, name):
        folder = out / name / f"policy-{process().process_index}"
        folder.mkdir()
        trainable.save_policy(policy, folder, models / kind)
for name, adapter in (("sft lora", lora(rank=4, alpha=8)), ("sft full", Full(kind="full"))):
    if names and name not in names:
        continue
    settings = dataclasses.replace(dpo_settings(**STEPS), adapter=adapter, shard="full")
    policy = trainable.new_policy(models / "gpt2", settings, 0, "")
    tasks = Tasks(*(sft_task(chosen_groups(frame), frame["id"].tolist()) for frame in frames.values()))
    (out / name).mkdir(parents=True, exist_ok=True)
    if train(policy, tasks, settings.training, [], name):
        for dtype in ("float32", "bfloat16"):
            folder = out / name / f"{'policy' if dtype == 'float32' else dtype}-{process().process_index}"
            folder.mkdir()
            trainable.save_merged(policy, folder, dtype)
"""
DPO = ["llama lora", "llama full", "gpt2 full", "gpt2 lora", "llama full live", "llama full moving"]
CASES = [*DPO, "llama lora moving", "llama lora kto", "llama full kto", "sft lora", "sft full"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("llama", "gpt2"):
        write_model(folder / kind, kind)
    return folder


def run(models: Path, out: Path, processes: int, *names: str, stop_after: int = -1) -> None:
    root = Path(__file__).parents[2]
    script = out.with_name("script.py")
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    paths = os.pathsep.join([str(root), str(root / "tests/helpers")])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, script, models, out, str(stop_after), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture(scope="module")
def one(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "out"
    run(models, out, 1)
    return out


@pytest.fixture(scope="module")
def two(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two") / "out"
    run(models, out, 2)
    return out


def saved(out: Path, name: str) -> dict[str, torch.Tensor]:
    (file,) = (out / name / "policy-0").glob("*model.safetensors")
    return load_file(file)


@pytest.mark.parametrize("name", CASES)
def test_two_shards_are_trained_as_one_model(name: str, one: Path, two: Path, models: Path) -> None:
    whole, shards = saved(one, name), saved(two, name)
    assert shards.keys() == whole.keys()
    for key, tensor in whole.items():
        if key.endswith("c_attn.bias"):  # attention does not depend on the biases of keys: their gradient is rounding
            keys = slice(32, 64)
            shards[key][keys] = tensor[keys]
        torch.testing.assert_close(
            shards[key], tensor, rtol=1e-3, atol=1e-4, msg=lambda message, key=key: f"{key}: {message}"
        )
    if "sft" in name:
        rounded = load_file(two / name / "bfloat16-0" / "model.safetensors")
        assert rounded.keys() == saved(two, name).keys()
        assert all(torch.equal(rounded[key], tensor.bfloat16()) for key, tensor in saved(two, name).items())
    losses = [torch.tensor(eval((out / name / "history").read_text())) for out in (one, two)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    assert (two / name / "drift").read_text() == (one / name / "drift").read_text()
    if "full" in name:  # a tensor that the optimiser lost would stay as it was
        before = load_file(models / name.split()[0].replace("sft", "gpt2") / "model.safetensors")
        assert [key for key, tensor in shards.items() if torch.equal(tensor, before[key])] == []


@pytest.mark.parametrize(("first", "then"), [(2, 1), (2, 2), (1, 2)])
def test_a_checkpoint_of_some_processes_resumes_on_others(
    first: int, then: int, one: Path, models: Path, tmp_path: Path
) -> None:
    names = ["llama full", "llama lora moving"]
    run(models, tmp_path / "out", first, *names, stop_after=2)
    assert not list((tmp_path / "out").glob("*/policy-*"))
    run(models, tmp_path / "out", then, *names)
    for name in names:
        for key, tensor in saved(one, name).items():
            torch.testing.assert_close(saved(tmp_path / "out", name)[key], tensor, rtol=1e-3, atol=1e-4)
