"""Weights in bfloat16: a reference that is written in it, and a frozen base that is trained on in it."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tasks import NO_OPTIONS, without_tracking
from text_project import dpo_settings, write_text_project
from tiny_models import ADAPTERS, disturb, lora, training, with_adapter, write_model

from prefdag.config.adapter import Adapter, Full
from prefdag.config.loss_options import LossOptions
from prefdag.config.ref_logps import RefLogps
from prefdag.config.sft_ref import SftRef, SupervisedTraining
from prefdag.runtime.artifacts import read_json
from prefdag.runtime.types import Dtype
from prefdag.text import model as lm
from prefdag.text import trainable
from stages import dpo_text, ref_logps, sft_ref

FULL = Full(kind="full")


def saved(policy: lm.Policy, folder: Path, dtype: Dtype) -> dict[str, torch.Tensor]:
    trainable.save_merged(policy, folder, dtype)
    assert read_json(folder / "config.json")["dtype"] == dtype
    tensors = load_file(folder / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("adapter", ["lora", "dora", "full"])
def test_a_reference_in_bfloat16_is_the_rounded_one(kind: str, adapter: str, tmp_path: Path) -> None:
    policy = with_adapter(write_model(tmp_path / kind, kind), ADAPTERS[adapter])
    disturb(policy)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    exact, rounded = saved(policy, tmp_path / "exact", "float32"), saved(policy, tmp_path / "rounded", "bfloat16")
    assert exact.keys() == rounded.keys()
    for name, tensor in exact.items():
        assert torch.equal(rounded[name], tensor.to(torch.bfloat16)), name
    assert (tmp_path / "rounded/generation_config.json").read_bytes() == (
        tmp_path / "exact/generation_config.json"
    ).read_bytes()
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    loaded = lm.load(tmp_path / "rounded").state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in rounded.items())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lora_on_weights_in_bfloat16_is_merged_in_float32(kind: str, tmp_path: Path) -> None:
    base = lm.load(write_model(tmp_path / kind, kind), "bfloat16")
    policy = trainable.add_adapter(base, lora(), 0, "adapter")
    disturb(policy)
    tensors = saved(policy, tmp_path / "merged", "float32")
    layers = lm.lora_layers(policy)
    assert layers
    for name, layer in layers.items():
        delta = layer.get_delta_weight("default")
        assert delta.dtype == torch.float32  # the adapter is trained in float32
        assert torch.equal(tensors[f"{name}.weight"], layer.get_base_layer().weight.float() + delta)
        assert not torch.equal(tensors[f"{name}.weight"], tensors[f"{name}.weight"].bfloat16().float())


def train(dtype: Dtype, adapter: Adapter, **changes: Any) -> None:
    settings = {"epochs": 1, "precision": dtype, "learning_rate": 1e-2}
    sft_ref.main(
        SftRef(
            adapter=lora(),
            training=training(SupervisedTraining, **settings),
            gradient_checkpointing=False,
            shard="none",
            load_dtype=dtype,
            save_dtype="bfloat16",
            seed=0,
        )
    )
    ref_logps.main(RefLogps(dtype=dtype, tokens_per_batch=100, shard="none"))
    config = dpo_settings(**settings)
    config = dataclasses.replace(config, adapter=adapter, load_dtype=dtype)
    dpo_text.main(0.1, "sigmoid", 0, LossOptions(**NO_OPTIONS), {}, config)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "adapter"), [("float32", lora()), ("float32", FULL), ("bfloat16", lora())])
@pytest.mark.usefixtures("one_thread")
def test_the_policy_starts_at_a_reference_in_bfloat16(
    dtype: Dtype, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = without_tracking(monkeypatch, tmp_path / "checkpoints")
    sft_ref.BASE.parent.mkdir()
    write_text_project(tmp_path, "llama")
    dpo_text.REFERENCE.rename(sft_ref.BASE)
    train(dtype, adapter)
    stored = load_file(sft_ref.REFERENCE / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    history = pd.read_csv(dpo_text.POLICY / "history.csv")
    assert history["logratios/square"][0] < (1e-9 if dtype == "float32" else 1e-2)
    for _, trained in results:
        for p in trained.parameters():
            assert p.dtype == (torch.float32 if p.requires_grad else lm.DTYPES[dtype])
    # What is evaluated starts from exactly the stored weights.
    weights = dict(lm.load_models(dpo_text.REFERENCE, dpo_text.POLICY).reference.named_parameters())
    for name, tensor in stored.items():
        (p,) = (p for other, p in weights.items() if other.replace(".base_layer", "").endswith(name))
        assert torch.equal(p, tensor.float()), name
