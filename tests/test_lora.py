"""Adapters: they start at nothing, train alone, merge to the same function, and are written as the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny_models import TARGETS, disturb, random_groups, training, weights, with_lora, write_both, write_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from prefdag.artifacts import sha256
from prefdag.config import Lora
from prefdag.dpo.checkpoint import Checkpoints
from prefdag.dpo.losses import Preference
from prefdag.dpo.trainer import History, Outcome, Task, fit
from prefdag.errors import ParamsError
from prefdag.text import model as lm
from prefdag.text.logps import pair_logps, score
from prefdag.text.packing import Group

KINDS = list(TARGETS)
GROUPS = random_groups(8)
IDS = torch.tensor([[1, 2, 3, 4]])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_both(tmp_path_factory.mktemp("models"))


def preference_task(model: torch.nn.Module, groups: list[Group]) -> Task:
    """DPO against what `model` says now."""
    preference = Preference("sigmoid", 0.5, 0.0)
    reference = torch.from_numpy(score(model.eval(), groups, 1000, "reference")).float().view(-1, 2)

    def objective(model: torch.nn.Module, rows: Any, epoch: int | None) -> Outcome:
        return preference.outcome(
            *pair_logps(model, [groups[i] for i in rows]), *reference[list(rows)].unbind(1)
        )

    return Task(objective, [1.0] * len(groups), [f"pair {i}" for i in range(len(groups))])


def train(model: torch.nn.Module, task: Task, folder: Path, **changes: Any) -> History:
    return fit(
        model, task, task, training(**changes), seed=0, checkpoints=Checkpoints(folder), log=lambda step, metrics: None
    )


def logits(model: Any) -> Tensor:
    """Through the packed attention where the model has it, as one segment of one response."""
    with torch.no_grad():
        packed = {"segments": [(0, 1, (3,))]} if model.config._attn_implementation == lm.attention.NAME else {}
        return model(input_ids=IDS, **packed).logits


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_change_nothing(models: dict[str, Path], kind: str) -> None:
    policy = with_lora(models[kind])
    reference = score(lm.load(models[kind]), GROUPS, 50, "reference")
    assert np.array_equal(score(policy, GROUPS, 50, "policy"), reference)
    disturb(policy)
    assert not np.allclose(score(policy, GROUPS, 50, "policy"), reference, atol=0.1)
    with policy.disable_adapter():
        assert np.array_equal(score(policy, GROUPS, 50, "policy"), reference)


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_at_the_reference(models: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """Also where the base model has dropout of its own (GPT-2: 0.1), which the reference was scored without."""
    policy = with_lora(models[kind])
    history = train(policy, preference_task(policy, GROUPS), tmp_path)
    assert history.train[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert history.train[0]["rewards/chosen"] == pytest.approx(0, abs=1e-4)
    assert history.train[0]["rewards/rejected"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapters_are_trained(models: dict[str, Path], kind: str, tmp_path: Path) -> None:
    policy = with_lora(models[kind])
    before = weights(policy)
    train(policy, preference_task(policy, GROUPS), tmp_path, epochs=3)
    after = weights(policy)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name}


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_is_the_adapted_one(models: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """Loaded by plain transformers, without peft; GPT-2's c_attn stores its weights transposed."""
    policy = with_lora(models[kind])
    disturb(policy)
    expected, base = logits(policy), logits(lm.load(models[kind]))
    lm.save_merged(policy, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-4)
    assert (expected - base).abs().max() > 0.1
    assert not list((tmp_path / "merged").glob("*.bin"))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_adapters_come_back(models: dict[str, Path], kind: str, tmp_path: Path) -> None:
    policy = with_lora(models[kind])
    disturb(policy)
    lm.save_adapter(policy, tmp_path, models[kind])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    again = lm.load_policy(models[kind], tmp_path)
    assert np.array_equal(score(again, GROUPS, 50, "again"), score(policy, GROUPS, 50, "policy"))
    assert not again.training
    with again.disable_adapter():
        assert np.array_equal(
            score(again, GROUPS, 50, "again"), score(lm.load(models[kind]), GROUPS, 50, "reference")
        )


def test_adapters_are_drawn_from_the_seed(models: dict[str, Path]) -> None:
    drawn = [weights(with_lora(models["llama"], seed)) for seed in (0, 0, 1)]
    name = next(name for name in drawn[0] if "lora_A" in name)
    assert torch.equal(drawn[0][name], drawn[1][name])
    assert not torch.equal(drawn[0][name], drawn[2][name])


SAVE = """
import sys
from pathlib import Path
from prefdag.config import Lora
from prefdag.text import model as lm
base, into = map(Path, sys.argv[1:])
lora = Lora(rank=2, alpha=4, dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"])
lm.save_adapter(lm.add_lora(lm.load(base), lora, 0), into, Path("models/reference"))
"""


@pytest.mark.slow
def test_saved_adapters_are_the_same_bytes_in_every_process(
    models: dict[str, Path], tmp_path: Path, root: Path
) -> None:
    """peft's set of target modules is ordered by the hash seed."""
    for seed in ("1", "2", "3"):
        (tmp_path / seed).mkdir()
        subprocess.run(
            [sys.executable, "-c", SAVE, models["llama"], tmp_path / seed],
            check=True,
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
    assert len({sha256(tmp_path / seed) for seed in ("1", "2", "3")}) == 1


def test_adapter_config_lists_target_modules_in_order(models: dict[str, Path], tmp_path: Path) -> None:
    targets = ["v_proj", "q_proj", "up_proj", "k_proj"]
    lora = Lora(rank=2, alpha=4, dropout=0.0, target_modules=targets)
    lm.save_adapter(lm.add_lora(lm.load(models["llama"]), lora, 0), tmp_path, Path("models/reference"))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(targets)
    assert config["base_model_name_or_path"] == "models/reference"


@pytest.mark.parametrize(("kind", "wrong", "right"), [("llama", "c_attn", "q_proj"), ("gpt2", "q_proj", "c_attn")])
def test_an_unknown_target_module_is_named_with_what_there_is(
    models: dict[str, Path], kind: str, wrong: str, right: str
) -> None:
    """The article's q_proj on a GPT-2 trains nothing."""
    lora = Lora(rank=2, alpha=4, dropout=0.0, target_modules=[right, wrong])
    with pytest.raises(ParamsError, match=f"lora.target_modules: .*'{wrong}'; choose among .*'{right}'"):
        lm.add_lora(lm.load(models[kind]), lora, 0)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_embeddings_are_no_target(models: dict[str, Path], target: str) -> None:
    """Where input and output embeddings are one tensor, as in SmolLM2, merging an adapter of one alters both."""
    lora = Lora(rank=2, alpha=4, dropout=0.0, target_modules=[target])
    with pytest.raises(ParamsError, match=f"'{target}'"):
        lm.add_lora(lm.load(models["llama"]), lora, 0)


def test_tokenizer_files_are_copied_byte_for_byte(tmp_path: Path) -> None:
    base, into = tmp_path / "base", tmp_path / "into"
    base.mkdir()
    into.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (base / name).write_bytes(b"\xff\r\n" + name.encode())
    lm.copy_tokenizer(base, into)
    assert {path.name: path.read_bytes() for path in into.iterdir()} == {
        name: b"\xff\r\n" + name.encode() for name in ("tokenizer.json", "chat_template.jinja")
    }


def test_a_merged_model_is_written_as_the_same_bytes(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "llama", "llama")
    for name in ("a", "b"):
        policy: PeftModel = with_lora(folder)
        disturb(policy)
        lm.save_merged(policy, tmp_path / name)
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")
