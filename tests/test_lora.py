"""Adapters: they start at the reference, leave it alone, and mean the same merged, saved and loaded."""

from pathlib import Path

import pytest
import torch
from tiny_models import TARGETS, disturb, random_groups, weights, with_lora, write_model

from prefdag.config import Lora
from prefdag.errors import ParamsError
from prefdag.text import model as lm
from prefdag.text.logps import response_logps
from prefdag.text.packing import pack

GROUPS = pack(random_groups(6))
each_kind = pytest.mark.parametrize("kind", TARGETS)


@torch.no_grad()
def logps(model: torch.nn.Module) -> torch.Tensor:
    return response_logps(model, GROUPS)


@each_kind
def test_fresh_adapters_change_nothing(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / kind, kind)
    assert torch.equal(logps(with_lora(folder).eval()), logps(lm.load(folder)))


@each_kind
def test_training_leaves_the_base_weights_alone(kind: str, tmp_path: Path) -> None:
    model = with_lora(write_model(tmp_path / kind, kind))
    before = weights(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        response_logps(model, GROUPS).sum().backward()
        optimizer.step()
    changed = {name for name, t in weights(model).items() if not torch.equal(t, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


@each_kind
def test_merged_equals_adapted_and_differs_from_base(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / kind, kind)
    model = with_lora(folder).eval()
    disturb(model)
    adapted = logps(model)
    (tmp_path / "merged").mkdir()
    lm.save_merged(model, tmp_path / "merged")
    torch.testing.assert_close(logps(lm.load(tmp_path / "merged")), adapted, rtol=1e-4, atol=1e-4)
    assert (adapted - logps(lm.load(folder))).abs().max() > 0.1


@each_kind
def test_a_saved_adapter_comes_back(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / kind, kind)
    model = with_lora(folder).eval()
    disturb(model)
    (tmp_path / "adapter").mkdir()
    lm.save_adapter(model, tmp_path / "adapter", folder)
    policy = lm.load_policy(folder, tmp_path / "adapter")
    assert torch.equal(logps(policy), logps(model))
    with policy.disable_adapter():
        assert torch.equal(logps(policy), logps(lm.load(folder)))


def test_an_unknown_target_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    model = lm.load(write_model(tmp_path / "llama", "llama"))
    with pytest.raises(ParamsError, match=r"no module 'c_attn'.*q_proj"):
        lm.add_lora(model, Lora(rank=1, alpha=1, dropout=0.0, target_modules=["c_attn"]), 0)
