"""A model that is loaded by two processes, each of which reads and holds a part, is the model that one process loads."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_model
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.slow

SCRIPT = """
import ctypes, gc, sys, threading, time
from pathlib import Path

import torch
from text_project import frame_of, pairs_of
from tiny_models import disturb, lora, random_groups

from prefdag.config.adapter import Full

from prefdag.distributed import process as processes
from prefdag.distributed import sharding
from prefdag.distributed.process import process
from prefdag.lifecycle.errors import DataError
from prefdag.text import model as lm
from prefdag.text import trainable
from prefdag.text.scoring.logps import response_logps
from prefdag.text.scoring.packing import pack
from prefdag.text.evaluation.metrics import compare_heldout
from prefdag.text.generation.decoding import continuations
from prefdag.text.scoring.logps import all_pair_logps
from prefdag.text.scoring.rows import pair_rows
from prefdag.text.sharded import load_both, load_sharded, load_to_score

processes.keep_freed_memory = lambda: None  # so that the resident memory is what is alive
models, world = Path(sys.argv[1]), process().num_processes
packed = pack(random_groups(5))


def described(policy):
    half = next(lm.adapted_model(policy).parameters()).dtype == torch.bfloat16
    torch.manual_seed(0)  # the dropout
    with torch.autocast("cpu", torch.bfloat16, half, cache_enabled=False):
        logps = response_logps(policy, packed)
    logps.sum().backward()
    sharding.reshard(policy)
    weights = {name: sharding.whole(p.detach()) for name, p in policy.named_parameters()}
    gradients = {f"gradient of {n}": sharding.whole(p.grad) for n, p in policy.named_parameters() if p.grad is not None}
    return {"logps": logps.detach(), **weights, **gradients, **dict(policy.named_buffers())}


def kinds(policy):
    return [type(module).__name__.removeprefix("FSDP") for module in policy.modules()]


def same(folder, adapter=None, dtype="float32"):
    adapt = (lambda model: trainable.add_adapter(model, adapter, 3, "")) if adapter else (lambda model: model)
    one, two = adapt(lm.load(folder, dtype)), load_sharded(folder, dtype, adapt)
    trainable.set_magnitudes(two)
    for p in two.parameters():
        assert sharding.local(p).numel() < p.numel()
    assert kinds(two) == kinds(one)
    assert lm.adapted_model(two).prefdag_forward_mode == lm.adapted_model(one).prefdag_forward_mode
    whole, divided = described(one), described(two)
    assert divided.keys() == whole.keys()
    for name, tensor in whole.items():
        if name == "logps" or name.startswith("gradient") or "magnitude" in name:
            off = (divided[name] - tensor).norm() / tensor.norm().clamp(min=1e-3)
            assert off < (1e-4 if dtype == "float32" else 0.05), (name, off)
        else:
            assert (divided[name].dtype, divided[name].tolist()) == (tensor.dtype, tensor.tolist()), name


def anonymous():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024


def most_anonymous(load):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system
    start, most, done = anonymous(), [0], threading.Event()

    def watch():
        while not done.wait(0.001):
            most[0] = max(most[0], anonymous() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load()
    done.set()
    watcher.join()
    return most[0]


size = (models / "large/model.safetensors").stat().st_size * 2  # as float32
divided = most_anonymous(lambda: load_sharded(models / "large"))
whole = most_anonymous(lambda: lm.load(models / "large"))
assert divided < 0.85 * size < size < whole, (divided, whole, size)
same(models / "llama")
same(models / "llama", lora(dora=True, dropout=0.1))
same(models / "llama", lora(), "bfloat16")
same(models / "gpt2", lora())
same(models / "gpt2", lora(dora=True))
same(models / "tied")


def compare_scores(folder, adapter):
    # What the scoring stages compute with both models.
    reference, policy = models / folder, models / f"{folder} policy {getattr(adapter, 'dora', None)}"
    trained = trainable.add_adapter(lm.load(reference), adapter, 0, "")
    disturb(trained)
    if process().is_main_process:
        policy.mkdir()
        trainable.save_policy(trained, policy, reference)
    process().wait_for_everyone()
    found = []
    for shard in ("none", "full"):
        both = load_both(reference, policy, shard=shard)
        heldout = compare_heldout(both, pairs, 40)
        answers = []
        for model in load_both(reference, policy, shard=shard, packed=False):
            options = {"stop_ids": [3], "batch_size": 2, "name": "", "sampling": (1.0, 0.9), "max_new_tokens": 9}
            for seeds in ([[None]] * 5, [[[i]] for i in range(5)], [[None, [i], [i, 1]] for i in range(5)]):
                written = continuations(model, [p.prompt for p in pairs], seeds, **options)
                answers.append([answer for each in written for answer in each])
        scores = all_pair_logps(load_to_score(reference, shard=shard), pairs, 40, "")
        found.append(([both.policy], heldout, answers, scores))
    (whole, *one), (divided, *two) = found
    assert (sharding.is_sharded(whole[0]), sharding.is_sharded(divided[0])) == (False, True)
    assert len({len(answer) for of_model in one[1] for answer in of_model}) > 1  # some end before others
    assert repr(one) == repr(two), (one, two)


pairs = pair_rows(pairs_of(frame_of(5)))
torch.set_printoptions(precision=10)
compare_scores("llama", lora(dora=True))
compare_scores("gpt2", Full(kind="full"))
compare_scores("bloom", Full(kind="full"))  # answers by transformers' `generate`
for kind in ("none", "empty", "missing", "unexpected", "mismatched", "cut"):
    found = []
    for load in (lm.load, load_sharded):
        try:
            load(models / kind)
        except DataError as error:
            found.append(str(error))
    assert len(found) == 2 and "\\n" not in found[1], found
    assert found[0] == found[1] or kind == "cut", found
"""


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes | {"num_key_value_heads": 2, "initializer_range": 0.3} | changes))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "gpt2", "gpt2")
    torch.manual_seed(0)
    bloom = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    BloomForCausalLM(bloom).save_pretrained(folder / "bloom")
    llama(vocab_size=65).save_pretrained(
        folder / "llama", max_shard_size="20KB"
    )  # several files, rows that do not divide
    llama(tie_word_embeddings=True).save_pretrained(folder / "tied")
    large = llama(hidden_size=512, intermediate_size=1408, num_hidden_layers=20)
    large.to(torch.bfloat16).save_pretrained(folder / "large")
    (folder / "empty").mkdir()
    for kind in ("missing", "unexpected", "mismatched", "cut"):
        path = write_model(folder / kind, "llama") / "model.safetensors"
        tensors = load_file(path)
        if kind == "missing":
            del tensors["model.layers.1.mlp.up_proj.weight"]
        if kind == "unexpected":
            tensors["model.other"] = torch.zeros(3)
        if kind == "mismatched":
            tensors["model.norm.weight"] = torch.zeros(7)
        save_file(tensors, path, {"format": "pt"})
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:-100])
    return folder


def test_parts_of_a_model_are_loaded_as_the_whole(models: Path, tmp_path: Path) -> None:
    assert len(list((models / "llama").glob("*.safetensors"))) > 2
    assert AutoModelForCausalLM.from_pretrained(models / "tied").config.tie_word_embeddings
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "helpers")])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # larger tensors give their memory back
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, models]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-5000:]
