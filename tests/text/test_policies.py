"""Policies of every kind: their start, their trained parameters, and that merging, copying and saving keep their outputs."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from naive_answers import continuation
from peft import PeftModel
from safetensors.torch import load_file, save_file
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
    """A model folder of each kind, with a placeholder for the tokenizer."""
    by_kind = write_both(tmp_path_factory.mktemp("models"))
    for folder in by_kind.values():
        (folder / "tokenizer.json").write_text("{}")
    return by_kind


@torch.no_grad()
def logps(model: nn.Module) -> Tensor:
    return response_logps(model, PACKED)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def differ(actual: Tensor, other: Tensor) -> None:
    assert (actual - other).abs().max() > 0.1


def save(policy: lm.Policy, folder: Path, reference: Path) -> Path:
    folder.mkdir()
    trainable.save_policy(policy, folder, reference)
    return folder


# The start of a policy, and its trained parameters


@pytest.mark.slow
@each_model
@pytest.mark.parametrize("adapter", [*LORAS, "full"])
def test_a_fresh_policy_is_its_reference(kind: str, adapter: str, folders: dict[str, Path]) -> None:
    assert torch.equal(logps(with_adapter(folders[kind], ADAPTERS[adapter])), logps(lm.load(folders[kind])))


@pytest.mark.slow
def test_a_fresh_prefix_is_a_function_of_its_seed(folders: dict[str, Path]) -> None:
    a, b, c = (logps(with_adapter(folders["llama"], ADAPTERS["prefix"], seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    differ(a, c)


@pytest.mark.slow
@each_model
@each_adapter
def test_training_changes_only_the_trained_parameters(kind: str, adapter: str, folders: dict[str, Path]) -> None:
    """The others keep their bits; and two forward passes give the same bits."""
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


@pytest.mark.slow
@each_model
@each_adapter
def test_only_the_dropout_of_adapters_is_on(kind: str, adapter: str, folders: dict[str, Path]) -> None:
    """GPT-2's own dropout is 0.1: the reference was scored without it, so the policy must be too."""
    config = lora(dropout=0.5, dora=adapter == "dora") if adapter in LORAS else ADAPTERS[adapter]
    policy = with_adapter(folders[kind], config)
    disturb(policy)
    on = {name for name, m in policy.named_modules() if isinstance(m, nn.Dropout) and m.training}
    assert all("lora_dropout" in name for name in on)
    # The modules' modes do not tell: DoRA asks its layer, not its dropout, whether it is in training.
    assert torch.equal(logps(policy), logps(policy)) == (adapter not in LORAS)


def targets(policy: lm.Policy) -> set[str]:
    """The last names of the adapted modules."""
    return {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in policy.named_parameters() if "lora_A" in name}


@pytest.mark.parametrize(
    ("kind", "setting", "expected"),
    [
        ("llama", "auto", {"q_proj", "v_proj"}),
        ("gpt2", "auto", {"c_attn"}),
        # Every linear layer except the head.
        ("llama", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt2", "all-linear", {"c_attn", "c_proj", "c_fc"}),
        ("llama", ["k_proj", "up_proj"], {"k_proj", "up_proj"}),
    ],
)
def test_target_modules(kind: str, setting: Any, expected: set[str], folders: dict[str, Path]) -> None:
    assert targets(with_adapter(folders[kind], lora(target_modules=setting))) == expected


@pytest.mark.parametrize("name", ["c_attn", "lm_head", "embed_tokens"])
def test_an_unknown_target_is_refused_with_a_list_of_the_known_ones(name: str, folders: dict[str, Path]) -> None:
    key = "params.yaml: dpo_text.adapter.target_modules"
    line = rf"^{key}: this model has no module '{name}'; choose from \['down_proj', .*"
    with pytest.raises(ParamsError, match=line) as error:
        with_adapter(folders["llama"], lora(target_modules=["q_proj", name]))
    assert "lm_head'," not in str(error.value)


def test_auto_lists_the_modules_of_an_unknown_architecture(folders: dict[str, Path]) -> None:
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
def test_qlora_names_what_is_missing(
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


@pytest.mark.slow
@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / 4**0.5)])
@each_model
def test_the_merged_weight_by_hand(kind: str, rslora: bool, scale: float, folders: dict[str, Path]) -> None:
    """Rank 4, alpha 8: every entry of B A is 4 * 0.5 * 0.25, and is scaled by 8 / 4, or by 8 / sqrt(4) under rslora."""
    policy = with_adapter(folders[kind], lora(rank=4, alpha=8, rslora=rslora))
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_" in name:
                p.fill_(0.5 if "lora_A" in name else 0.25)
    base = dict(lm.load(folders[kind]).named_parameters())
    for name, weight in trainable.effective_tensors(policy).items():
        close(weight - base[name], torch.full_like(weight, 4 * 0.5 * 0.25 * scale))


@each_model
def test_under_dora_a_trained_vector_is_the_norm_of_the_weights(kind: str, folders: dict[str, Path]) -> None:
    """||V|| = |m| for the weights of each output, whatever A and B: in GPT-2 these are columns, in Llama rows."""
    policy = with_adapter(folders[kind], lora(dora=True))
    disturb(policy)
    parameters = dict(policy.named_parameters())
    for name, weight in trainable.effective_tensors(policy).items():
        m = parameters[f"base_model.model.{name.removesuffix('weight')}lora_magnitude_vector.default.weight"]
        close(weight.norm(dim=0 if kind == "gpt2" else 1), m.detach().abs())


@pytest.mark.slow
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
    assert torch.equal(logps(policy), adapted)  # merging leaves the policy as it is


# Copied


@pytest.mark.slow
@each_model
@each_adapter
def test_a_frozen_copy_changes_only_when_it_is_updated(kind: str, adapter: str, folders: dict[str, Path]) -> None:
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


@pytest.mark.slow
@each_model
@each_adapter
def test_a_frozen_copy_owns_only_the_tensors_that_can_differ(kind: str, adapter: str, folders: dict[str, Path]) -> None:
    policy = with_adapter(folders[kind], ADAPTERS[adapter])
    copy = trainable.frozen_copy(policy)
    moving = trainable.effective_tensors(policy)
    theirs = {t.data_ptr() for t in policy.parameters()}
    own = {name for name, p in copy.named_parameters() if p.data_ptr() not in theirs}
    assert own == set(moving)
    assert all(moving[name].shape == p.shape for name, p in copy.named_parameters() if name in moving)


@pytest.mark.slow
@each_model
@each_adapter
def test_the_untrained_model_can_be_used_during_training(kind: str, adapter: str, folders: dict[str, Path]) -> None:
    """Even between the policy's forward and backward pass, without changing its gradient."""
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


@pytest.mark.slow
@each_model
@each_adapter
def test_a_saved_policy_loads_together_with_its_reference(
    kind: str, adapter: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    policy = with_adapter(folders[kind], ADAPTERS[adapter])
    disturb(policy)
    saved = save(policy, tmp_path / "policy", folders[kind])
    models = lm.load_models(folders[kind], saved)
    assert torch.equal(logps(models.policy), logps(policy))
    assert torch.equal(logps(models.reference), logps(lm.load(folders[kind])))
    assert sha256(saved) == sha256(save(policy, tmp_path / "again", folders[kind]))


def test_a_fully_fine_tuned_model_loads_without_its_reference(folders: dict[str, Path], tmp_path: Path) -> None:
    policy = with_adapter(folders["gpt2"], Full(kind="full"))
    disturb(policy)
    saved = save(policy, tmp_path / "policy", folders["gpt2"])
    assert torch.equal(logps(lm.load(saved)), logps(policy))
    assert (saved / "tokenizer.json").read_bytes() == (folders["gpt2"] / "tokenizer.json").read_bytes()


@pytest.mark.slow
@each_model
@pytest.mark.parametrize("adapter", [*LORAS, "prefix"])
def test_packed_rows_agree_with_peft_on_the_saved_adapter(
    kind: str, adapter: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The same values and gradients as peft under transformers' own attention, one response at a time.

    For a prefix this tests positions, which peft shifts by the number of its tokens, and the mask of packed rows.
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
    packed = response_logps(policy, PACKED)
    close(packed, expected)
    upstream = torch.arange(len(packed)).cos()  # a different gradient for each response
    (packed * upstream).sum().backward()
    (expected * upstream).sum().backward()
    ours, theirs = ({n: p.grad for n, p in model.named_parameters() if n in trained} for model in (policy, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@each_model
def test_a_prefix_can_be_trained_in_mixed_precision(kind: str, folders: dict[str, Path]) -> None:
    """The keys and values of the prefix are float32, those of the row are bfloat16."""
    policy = with_adapter(folders[kind], Prefix(kind="prefix", tokens=3))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = response_logps(policy, PACKED)
    torch.testing.assert_close(mixed, logps(policy), rtol=0.1, atol=0.5)


# Generated


@torch.no_grad()
def stepwise(model: nn.Module, prompt: list[int], n: int) -> list[int]:
    """The most probable tokens one after the other, each from a forward pass of the scoring path over the whole text."""
    answer: list[int] = []
    for _ in range(n):
        states = response_states(model, pack([Group([*prompt, *answer], ([0],))]))
        layer = head(model)
        assert layer is not None
        answer.append(int(layer(states)[0].argmax()))
    return answer


@pytest.mark.slow
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
    # The EOS ends an answer and is not part of it.
    eos = expected[1][4]
    assert continuation(models.policy, prompt, 8, eos) == expected[1][: expected[1].index(eos)]


Tensors = dict[str, Tensor]


def first(tensors: Tensors, change: Callable[[Tensor], Tensor]) -> Tensors:
    name = min(tensors)
    return tensors | {name: change(tensors[name])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda tensors: {}, "missing"),
        (lambda tensors: dict(list(tensors.items())[1:]), "missing"),
        (
            lambda tensors: {name.replace("layers.0", "layers.9"): t for name, t in tensors.items()},
            "missing",
        ),
        (lambda tensors: tensors | {"extra": torch.ones(1)}, "extra: not a tensor of this adapter"),
        (lambda tensors: first(tensors, lambda t: t * float("nan")), "not finite"),
        (lambda tensors: first(tensors, lambda t: t + float("inf")), "not finite"),
        (
            lambda tensors: first(tensors, lambda t: t.to(torch.int32)),
            "torch.int32 (2, 32), expected torch.float32 (2, 32)",
        ),
        (lambda tensors: first(tensors, lambda t: t.half()), "torch.float16 (2, 32), expected torch.float32 (2, 32)"),
        (lambda tensors: first(tensors, lambda t: t.T.contiguous()), "not an adapter of this model"),
    ],
    ids=["all lost", "one lost", "renamed", "additional", "nan", "infinite", "integers", "half", "transposed"],
)
def test_an_adapter_is_loaded_whole_or_not_at_all(
    change: Callable[[Tensors], Tensors], fault: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    policy = with_adapter(folders["llama"], ADAPTERS["lora"])
    disturb(policy)
    path = save(policy, tmp_path / "policy", folders["llama"]) / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    with pytest.raises(DataError) as caught:
        lm.load_models(folders["llama"], path.parent)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda tensors: dict(list(tensors.items())[1:]), "missing tensor"),
        (lambda tensors: tensors | {"extra": torch.ones(1)}, "unexpected tensor extra"),
        (lambda tensors: first(tensors, lambda t: t[:-1].contiguous()), "not a causal language model"),
    ],
    ids=["lost", "additional", "cut"],
)
def test_a_model_is_loaded_whole_or_not_at_all(
    change: Callable[[Tensors], Tensors], fault: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["llama"], folder)
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    with pytest.raises(DataError, match=fault):
        lm.load(folder)


def test_a_missing_policy_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"policy: not found; run `dvc repro` first"):
        lm.load_models(folders["llama"], tmp_path / "policy", packed=False)
