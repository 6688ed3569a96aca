"""Policies of every kind: where they start, what of them is trained, and that they mean the same merged, copied and saved."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from naive_answers import continuation
from peft import PeftModel
from tiny_models import ADAPTERS, TARGETS, disturb, lora, random_groups, with_adapter, write_both
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from prefdag.config.adapter import Full, Prefix
from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.runtime.artifacts import sha256
from prefdag.text import model as lm
from prefdag.text import trainable
from prefdag.text.scoring.logps import response_logps
from prefdag.text.scoring.packing import Group, pack
from prefdag.text.scoring.states import head, response_states

GROUPS = random_groups(6, responses=None)
PACKED = pack(GROUPS)
LORAS = ["lora", "rslora", "dora"]
each_model = pytest.mark.parametrize("kind", TARGETS)
each_adapter = pytest.mark.parametrize("adapter", ADAPTERS)
each_lora = pytest.mark.parametrize("adapter", LORAS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder of each kind, with something in the place of a tokenizer."""
    found = write_both(tmp_path_factory.mktemp("models"))
    for folder in found.values():
        (folder / "tokenizer.json").write_text("{}")
    return found


@torch.no_grad()
def logps(model: nn.Module) -> Tensor:
    return response_logps(model, PACKED)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def differ(found: Tensor, other: Tensor) -> None:
    assert (found - other).abs().max() > 0.1


def save(policy: lm.Policy, folder: Path, reference: Path) -> Path:
    folder.mkdir()
    trainable.save_policy(policy, folder, reference)
    return folder


# Where a policy starts, and what is trained


@each_model
@pytest.mark.parametrize("adapter", [*LORAS, "full"])
def test_a_fresh_policy_is_its_reference(kind: str, adapter: str, folders: dict[str, Path]) -> None:
    assert torch.equal(logps(with_adapter(folders[kind], ADAPTERS[adapter])), logps(lm.load(folders[kind])))


def test_a_fresh_prefix_is_a_function_of_its_seed(folders: dict[str, Path]) -> None:
    a, b, c = (logps(with_adapter(folders["llama"], ADAPTERS["prefix"], seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    differ(a, c)


@each_model
@each_adapter
def test_training_changes_what_is_trained_alone(kind: str, adapter: str, folders: dict[str, Path]) -> None:
    """Bit for bit; and two forward passes give the same bits."""
    policy = with_adapter(folders[kind], ADAPTERS[adapter])
    assert torch.equal(logps(policy), logps(policy))
    parameters = dict(policy.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.AdamW([p for p in parameters.values() if p.requires_grad], lr=0.1)
    for _ in range(2):
        response_logps(policy, PACKED).sum().backward()
        optimizer.step()
    changed = {name for name, p in parameters.items() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in parameters.items() if p.requires_grad}
    expected = {"prefix": "prompt_encoder", "full": ""}.get(adapter, "lora_")
    assert changed
    assert all(expected in name for name in changed)
    assert adapter != "full" or len(changed) == len(parameters)


@each_model
@each_adapter
def test_no_dropout_but_that_of_adapters_where_it_is_asked_for(
    kind: str, adapter: str, folders: dict[str, Path]
) -> None:
    """GPT-2's own is 0.1: `reference` was scored without, so must the policy."""
    config = lora(dropout=0.5, dora=adapter == "dora") if adapter in LORAS else ADAPTERS[adapter]
    policy = with_adapter(folders[kind], config)
    disturb(policy)
    on = {name for name, m in policy.named_modules() if isinstance(m, nn.Dropout) and m.training}
    assert all("lora_dropout" in name for name in on)
    # Not of the modules alone: DoRA asks its layer, not its dropout, whether it is in training.
    assert torch.equal(logps(policy), logps(policy)) == (adapter not in LORAS)


def targets(policy: lm.Policy) -> set[str]:
    """The last names of the adapted modules."""
    return {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in policy.named_parameters() if "lora_A" in name}


@pytest.mark.parametrize(
    ("kind", "asked", "found"),
    [
        ("llama", "auto", {"q_proj", "v_proj"}),
        ("gpt2", "auto", {"c_attn"}),
        # Every linear layer but the head.
        ("llama", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt2", "all-linear", {"c_attn", "c_proj", "c_fc"}),
        ("llama", ["k_proj", "up_proj"], {"k_proj", "up_proj"}),
    ],
)
def test_target_modules(kind: str, asked: Any, found: set[str], folders: dict[str, Path]) -> None:
    assert targets(with_adapter(folders[kind], lora(target_modules=asked))) == found


@pytest.mark.parametrize("name", ["c_attn", "lm_head", "embed_tokens"])
def test_an_unknown_target_is_answered_with_the_known_ones(name: str, folders: dict[str, Path]) -> None:
    key = "params.yaml: dpo_text.adapter.target_modules"
    line = rf"^{key}: this model has no module '{name}'; choose from \['down_proj', .*"
    with pytest.raises(ParamsError, match=line) as error:
        with_adapter(folders["llama"], lora(target_modules=["q_proj", name]))
    assert "lm_head'," not in str(error.value)


def test_auto_says_which_modules_there_are_where_it_knows_none(folders: dict[str, Path]) -> None:
    model: Any = lm.load(folders["gpt2"])
    model.config.model_type = "newest"
    line = r"params.yaml: sft_ref.adapter.target_modules: auto does not know newest models; .*\['c_attn', 'c_fc', 'c_proj'\]"
    with pytest.raises(ParamsError, match=line):
        trainable.add_adapter(model, lora(), 0, "sft_ref.adapter")


@pytest.mark.parametrize(
    ("device", "package", "kind", "line"),
    [
        ("cpu", True, "llama", "qlora needs a CUDA device, and none was found; set it to lora"),
        ("cuda", False, "llama", "qlora needs bitsandbytes; run `make qlora` to install it, or set it to lora"),
        ("cuda", True, "gpt2", "qlora does not support gpt2 models; set it to lora"),
    ],
)
def test_qlora_says_what_is_missing(
    device: str, package: bool, kind: str, line: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(trainable, "process", lambda: SimpleNamespace(device=torch.device(device)))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, p=None: package or None if n == "bitsandbytes" else find(n, p)
    )
    with pytest.raises(ParamsError, match=f"^params.yaml: dpo_text.adapter.kind: {line}$"):
        trainable.load_for_training(folders[kind], lora(kind="qlora"), "dpo_text.adapter")


# Merged


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4.0)])
@each_model
def test_the_merged_weight_by_hand(kind: str, rslora: bool, scale: float, folders: dict[str, Path]) -> None:
    """Rank 4, alpha 8, B A = 4 * 0.5 * 0.25 = 0.5 everywhere: 8 / 4 of that is added, or 8 / sqrt(4) under rslora."""
    policy = with_adapter(folders[kind], lora(rank=4, alpha=8, rslora=rslora))
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_" in name:
                p.fill_(0.5 if "lora_A" in name else 0.25)
    base = dict(lm.load(folders[kind]).named_parameters())
    for name, weight in trainable.effective_tensors(policy).items():
        close(weight - base[name], torch.full_like(weight, 0.5 * scale))


@each_model
def test_under_dora_a_trained_vector_is_the_length_of_the_weights(kind: str, folders: dict[str, Path]) -> None:
    """||V|| = |m| for the weights of each output, whatever A and B: GPT-2 keeps them in columns, Llama in rows."""
    policy = with_adapter(folders[kind], lora(dora=True))
    disturb(policy)
    parameters = dict(policy.named_parameters())
    for name, weight in trainable.effective_tensors(policy).items():
        m = parameters[f"base_model.model.{name.removesuffix('weight')}lora_magnitude_vector.default.weight"]
        close(weight.norm(dim=0 if kind == "gpt2" else 1), m.detach().abs())


@each_model
@pytest.mark.parametrize("adapter", [*LORAS, "full"])
def test_merged_equals_adapted_and_differs_from_base(
    kind: str, adapter: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    policy = with_adapter(folders[kind], ADAPTERS[adapter])
    disturb(policy)
    adapted = logps(policy)
    trainable.save_merged(policy, tmp_path)
    close(logps(lm.load(tmp_path)), adapted)
    differ(adapted, logps(lm.load(folders[kind])))
    assert torch.equal(logps(policy), adapted)  # it is not used up


# Copied


@each_model
@each_adapter
def test_a_frozen_copy_stands_still_until_it_is_told(kind: str, adapter: str, folders: dict[str, Path]) -> None:
    policy = with_adapter(folders[kind], ADAPTERS[adapter])
    frozen_weights = {name: p.detach().clone() for name, p in policy.named_parameters() if not p.requires_grad}
    fresh = logps(policy)
    copy = trainable.frozen_copy(policy)
    close(logps(copy), fresh)
    assert not any(p.requires_grad or module.training for module in copy.modules() for p in module.parameters())

    disturb(policy)
    differ(logps(policy), fresh)
    close(logps(copy), fresh)

    own = dict(copy.named_parameters())
    for name, tensor in trainable.effective_tensors(policy).items():
        own[name].copy_(tensor)
    close(logps(copy), logps(policy))
    parameters = dict(policy.named_parameters())
    assert all(torch.equal(parameters[name], before) for name, before in frozen_weights.items())


@each_model
@each_adapter
def test_a_frozen_copy_costs_what_can_differ(kind: str, adapter: str, folders: dict[str, Path]) -> None:
    policy = with_adapter(folders[kind], ADAPTERS[adapter])
    copy = trainable.frozen_copy(policy)
    moving = trainable.effective_tensors(policy)
    theirs = {t.data_ptr() for t in policy.parameters()}
    own = {name for name, p in copy.named_parameters() if p.data_ptr() not in theirs}
    assert own == set(moving)
    assert all(moving[name].shape == p.shape for name, p in copy.named_parameters() if name in moving)


@each_model
@each_adapter
def test_the_untrained_model_is_there_during_training(kind: str, adapter: str, folders: dict[str, Path]) -> None:
    """Also between the policy's forward and backward pass, whose gradient it leaves as it is."""
    policy = with_adapter(folders[kind], ADAPTERS[adapter])
    untrained = trainable.untrained(policy)
    disturb(policy)
    trained = [p for p in policy.parameters() if p.requires_grad]
    expected = torch.autograd.grad(response_logps(policy, PACKED).sum(), trained)

    loss = response_logps(policy, PACKED).sum()
    reference = response_logps(untrained, PACKED)
    loss.backward()
    assert torch.equal(reference, logps(lm.load(folders[kind])))
    assert not reference.requires_grad
    torch.testing.assert_close([p.grad for p in trained], list(expected))


# Saved


@each_model
@each_adapter
def test_a_saved_policy_comes_back_beside_its_reference(
    kind: str, adapter: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    policy = with_adapter(folders[kind], ADAPTERS[adapter])
    disturb(policy)
    saved = save(policy, tmp_path / "policy", folders[kind])
    models = lm.load_models(folders[kind], saved)
    assert torch.equal(logps(models.policy), logps(policy))
    assert torch.equal(logps(models.reference), logps(lm.load(folders[kind])))
    assert sha256(saved) == sha256(save(policy, tmp_path / "again", folders[kind]))


def test_a_whole_model_loads_without_its_reference(folders: dict[str, Path], tmp_path: Path) -> None:
    policy = with_adapter(folders["gpt2"], Full(kind="full"))
    disturb(policy)
    saved = save(policy, tmp_path / "policy", folders["gpt2"])
    assert torch.equal(logps(lm.load(saved)), logps(policy))
    assert (saved / "tokenizer.json").read_bytes() == (folders["gpt2"] / "tokenizer.json").read_bytes()


@each_model
@pytest.mark.parametrize("adapter", [*LORAS, "prefix"])
def test_packed_rows_mean_what_peft_means_by_the_saved_adapter(
    kind: str, adapter: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """peft, transformers' own attention, one response at a time: the same values and the same gradients.

    For a prefix this holds positions, which peft shifts by the number of its tokens, and the mask of packed rows.
    """
    policy = with_adapter(folders[kind], ADAPTERS[adapter])
    disturb(policy)
    saved = save(policy, tmp_path / "policy", folders[kind])
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders[kind]).eval(), str(saved)).eval()
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    for name, p in plain.named_parameters():
        p.requires_grad_(name in trained)

    def alone(prompt: list[int], response: list[int]) -> Tensor:
        lines = plain(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return torch.stack([line[token] for line, token in zip(lines, response, strict=True)]).sum()

    expected = torch.stack([alone(list(g.prompt), list(response)) for g in GROUPS for response in g.responses])
    found = response_logps(policy, PACKED)
    close(found, expected)
    signs = torch.arange(len(found)).cos()  # a gradient that differs from response to response
    (found * signs).sum().backward()
    (expected * signs).sum().backward()
    ours, theirs = ({n: p.grad for n, p in model.named_parameters() if n in trained} for model in (policy, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@each_model
def test_a_prefix_can_be_trained_in_mixed_precision(kind: str, folders: dict[str, Path]) -> None:
    """Keys and values of the prefix are float32, those of the row bfloat16."""
    policy = with_adapter(folders[kind], Prefix(kind="prefix", tokens=3))
    with torch.autocast("cpu", torch.bfloat16):
        found = response_logps(policy, PACKED)
    torch.testing.assert_close(found, logps(policy), rtol=0.1, atol=0.5)


# Generated


@torch.no_grad()
def stepwise(model: nn.Module, prompt: list[int], n: int) -> list[int]:
    """The most probable tokens one after the other, each from a whole pass of the scoring path."""
    said: list[int] = []
    for _ in range(n):
        states = response_states(model, pack([Group([*prompt, *said], ([0],))]))
        layer = head(model)
        assert layer is not None
        said.append(int(layer(states)[0].argmax()))
    return said


@each_model
@each_adapter
def test_answers_are_the_most_probable_tokens_of_the_scoring_path(
    kind: str, adapter: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    policy = with_adapter(folders[kind], ADAPTERS[adapter])
    disturb(policy)
    saved = save(policy, tmp_path / "policy", folders[kind])
    prompt, never = [5, 6, 7], 10**6
    expected = [stepwise(model, prompt, 8) for model in lm.load_models(folders[kind], saved)]
    assert expected[0] != expected[1]
    models = lm.load_models(folders[kind], saved, packed=False)
    assert [continuation(model, prompt, 8, never) for model in models] == expected
    # The EOS ends an answer, and is no part of it.
    eos = expected[1][4]
    assert continuation(models.policy, prompt, 8, eos) == expected[1][: expected[1].index(eos)]


def test_what_was_not_made_yet_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"policy: not found; run `dvc repro` first"):
        lm.load_for_generation(folders["llama"], tmp_path / "policy")
