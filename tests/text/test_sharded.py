"""Two processes train a language model as one does, each with all of it or with half, and resume on any number of them."""

import os
import shutil
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
from text_project import dpo_settings, frame_of, pairs_of
from tiny_models import lora

from prefdag.config.adapter import Full
from prefdag.config.dpo_text import TextReference
from prefdag.distributed.process import process
from prefdag.distributed.sharding import is_sharded, reshard
from prefdag.lifecycle.interruption import Interrupted
from prefdag.text import trainable
from prefdag.text.dpo_run import dpo_run, new_policy
from prefdag.text.scoring.logps import all_pair_logps
from prefdag.text.scoring.rows import chosen_groups, with_chosen
from prefdag.text.sft_task import sft_task
from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import fit
from prefdag.train.task import Tasks

models, out, resume = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
world = process().num_processes
splits = {"train": pairs_of(frame_of(7)), "val": pairs_of(frame_of(3, seed=1))}  # uneven: 3 and 4 rows a step
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
    "tied full": ("tied", Full(kind="full"), {}, "sigmoid"),
}
SFT = {"sft lora": lora(rank=4, alpha=8), "sft full": Full(kind="full")}
STOPPED = ["llama full", "llama lora moving"]
stopping = False


def log(step, metrics):
    if stopping and step == 2 and "learning_rate" in metrics:
        os.kill(os.getpid(), signal.SIGTERM)  # of the first process alone; all of them stop after this step


def train(model, tasks, hooks, save, target):
    target.mkdir(parents=True, exist_ok=True)
    training = dpo_settings(**STEPS).training
    try:
        history = fit(model, tasks, training, seed=3, checkpoints=Checkpoints(target / "checkpoints"), log=log, hooks=hooks)
    except Interrupted:
        return
    reshard(model)
    if process().is_main_process:
        (target / "history").write_text(repr([[row["loss"], row["grad_norm"]] for row in history.train]))
        (target / "drift").write_text(repr([row.get("drift/reference") for row in history.validation]))
    folder = target / f"policy-{process().process_index}"
    folder.mkdir()
    save(model, folder)


def dpo(name, shard, target):
    kind, adapter, changes, loss = CASES[name]
    settings = dataclasses.replace(dpo_settings(**STEPS), adapter=adapter, shard=shard, **changes)
    policy = new_policy(models / kind, settings, seed=0)
    assert is_sharded(policy) == (world > 1 and shard == "full")
    cached = lambda split, ids, pairs: all_pair_logps(trainable.before_training(policy), pairs, 100, split)
    run = dpo_run(policy, splits, preference_of(loss, 0.5), settings, cached, str)
    train(policy, run.tasks, run.hooks, lambda *to: trainable.save_policy(*to, models / kind), target)


def sft(name, shard, target):
    settings = dataclasses.replace(dpo_settings(**STEPS), adapter=SFT[name], shard=shard)
    policy = trainable.new_policy(models / "gpt2", settings, 0, "")
    tasks = Tasks(*(sft_task(chosen_groups(pairs), pairs.ids) for pairs in map(with_chosen, splits.values())))
    save = lambda model, folder: trainable.save_merged(model, folder, "float32")
    train(policy, tasks, [], save, target)
    rounded = target / f"bfloat16-{process().process_index}"
    rounded.mkdir()
    trainable.save_merged(policy, rounded, "bfloat16")


if resume:  # what stands in these folders
    for folder in resume:
        for name in STOPPED:
            dpo(name, "full", Path(folder) / name)
else:
    for shard in ("none", "full") if world > 1 else ("none",):
        for name in CASES:
            dpo(name, shard, out / shard / name)
        for name in SFT:
            sft(name, shard, out / shard / name)
    stopping = True
    for name in STOPPED:
        dpo(name, "full", out / "stopped" / name)
"""
DPO = ["llama lora", "llama full", "gpt2 full", "gpt2 lora", "llama full live", "llama full moving"]
CASES = [*DPO, "llama lora moving", "llama lora kto", "llama full kto", "tied full", "sft lora", "sft full"]
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("llama", "gpt2"):
        write_model(folder / kind, kind)
    write_model(folder / "tied", "llama", tie_word_embeddings=True)
    return folder


def run(models: Path, out: Path, processes: int, *resume: Path) -> None:
    root = Path(__file__).parents[2]
    script = out.with_name("script.py")
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    paths = os.pathsep.join([str(root), str(root / "tests/helpers")])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, script, models, out, *resume]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture(scope="module")
def one(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process."""
    out = tmp_path_factory.mktemp("one") / "out"
    run(models, out, 1)
    return out


@pytest.fixture(scope="module")
def two(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two, for each value of `shard`."""
    out = tmp_path_factory.mktemp("two") / "out"
    run(models, out, 2)
    return out


def saved(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "policy-0").glob("*model.safetensors")
    return load_file(file)


@pytest.mark.parametrize("shard", ["none", "full"])
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains(name: str, shard: str, one: Path, two: Path, models: Path) -> None:
    ours, theirs = two / shard / name, one / "none" / name
    whole, shards = saved(theirs), saved(ours)
    assert shards.keys() == whole.keys()
    for key, tensor in whole.items():
        if key.endswith("c_attn.bias"):  # attention does not depend on the biases of keys: their gradient is rounding
            keys = slice(32, 64)
            shards[key][keys] = tensor[keys]
        torch.testing.assert_close(shards[key], tensor, **CLOSE, msg=lambda message, key=key: f"{key}: {message}")
    if "sft" in name:
        rounded = load_file(ours / "bfloat16-0" / "model.safetensors")
        whole = load_file(ours / "policy-0" / "model.safetensors")
        assert rounded.keys() == whole.keys()
        assert all(torch.equal(rounded[key], tensor.bfloat16()) for key, tensor in whole.items())
    losses = [torch.tensor(eval((folder / "history").read_text())) for folder in (ours, theirs)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    assert (ours / "drift").read_text() == (theirs / "drift").read_text()
    if "full" in name:  # a tensor that the optimiser lost would stay as it was
        before = load_file(models / name.split()[0].replace("sft", "gpt2") / "model.safetensors")
        assert [key for key, tensor in shards.items() if torch.equal(tensor, before[key])] == []


@pytest.fixture(scope="module")
def resumed(one: Path, two: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What runs that stopped give when they are resumed, in folders such as 2-1: stopped with 2 processes, resumed by 1."""
    out = tmp_path_factory.mktemp("resumed") / "out"
    for first, then in ((2, 1), (2, 2), (1, 2)):
        shutil.copytree({1: one, 2: two}[first] / "stopped", out / f"{first}-{then}")
    assert not list(out.glob("*/*/policy-*"))
    run(models, out, 1, out / "2-1")
    run(models, out, 2, out / "2-2", out / "1-2")
    return out


@pytest.mark.parametrize("path", ["2-1", "2-2", "1-2"])
@pytest.mark.parametrize("name", ["llama full", "llama lora moving"])
def test_a_checkpoint_of_some_processes_resumes_on_others(name: str, path: str, resumed: Path, one: Path) -> None:
    after = saved(resumed / path / name)
    for key, tensor in saved(one / "none" / name).items():
        torch.testing.assert_close(after[key], tensor, **CLOSE)
