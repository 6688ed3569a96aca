"""What models ask of their attention: supported as transformers' eager attention computes it, or not packed and said."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_models import GEMMA2, MODELS, SMALL, long_groups, write
from gradients import assert_close, gradients
from naive_logps import naive_logps
from tiny_models import random_groups, write_model
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface, AutoModelForCausalLM, Gemma2Config, LlamaConfig
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from prefdag.text import model as lm
from prefdag.text import trainable
from prefdag.text.scoring import trial
from prefdag.text.scoring.attention import PackedMask, UnsupportedOptionError, packed_attention
from prefdag.text.scoring.chunked import chunked_attention
from prefdag.text.scoring.flex import flex_mask, flex_packed_attention
from prefdag.text.scoring.logps import response_logps
from prefdag.text.scoring.packing import Group, pack
from prefdag.text.scoring.states import forward_mode
from prefdag.text.scoring.trial import is_causal, set_forward_mode


@pytest.mark.slow
@pytest.mark.parametrize("weights", [0.02, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_eager_attention(name: str, weights: float, tmp_path: Path) -> None:
    folder = write(tmp_path, name, weights)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    model = lm.load(folder)
    assert forward_mode(model).packed == MODELS[name][2]
    expected, results = naive_logps(plain, long_groups()), response_logps(model, pack(long_groups()))
    torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-3 if weights > 0.1 else 1e-4)
    assert_close(gradients(results, model), gradients(expected, plain), 5e-3)


@pytest.mark.slow
def test_a_window_is_followed_in_layers_that_are_computed_twice(tmp_path: Path) -> None:
    policy = lm.load(write(tmp_path, "gpt-oss: sinks, window", 0.3))
    expected = gradients(response_logps(policy, pack(long_groups())), policy)
    trainable.checkpoint_gradients(policy)
    assert_close(gradients(response_logps(policy, pack(long_groups())), policy), expected, 1e-5)


# Options that are not known


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    trial._warn_once.cache_clear()
    caplog.set_level(logging.WARNING, "prefdag")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("prefdag")]


def llama_with(folder: Path, **options: Any) -> Any:
    """A Llama that hands further keywords to its attention."""
    model = AutoModelForCausalLM.from_pretrained(write_model(folder, "llama")).eval()
    for layer in model.model.layers:
        layer.self_attn.forward = functools.partial(layer.self_attn.forward, **options)
    return model


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"tilt": 0.5}, "tilt of LlamaAttention: 0.5"),
        ({"tilt": 0}, "tilt of LlamaAttention: 0"),
        ({"position_bias": torch.zeros(1, 4, 1, 1)}, "position_bias of LlamaAttention: a tensor of shape (1, 4, 1, 1)"),
        ({"head_mask": torch.ones(4)}, "head_mask of LlamaAttention: a tensor of shape (4,)"),
        ({"is_causal": False}, "is_causal of LlamaAttention: False"),
        ({"output_attentions": True}, "output_attentions of LlamaAttention: True"),
    ],
)
def test_an_unknown_option_is_named_once_and_the_model_is_not_packed(
    options: dict[str, Any], shown: str, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    model = llama_with(tmp_path, **options)
    implementation = model.config._attn_implementation
    for _ in range(2):
        set_forward_mode(model)
        assert not forward_mode(model).packed
    assert model.config._attn_implementation == implementation
    assert warnings() == [
        f"llama models do not support packed rows (attention option {shown}); "
        "using one padded row per response, which is slower"
    ]
    if "tilt" in options:  # which the plain attention ignores
        few = random_groups(4, responses=None)
        torch.testing.assert_close(response_logps(model, pack(few)), naive_logps(model, few), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"tilt": None, "bent": False}, {"is_causal": True, "softcap": None, "s_aux": None}]
)
def test_an_option_that_is_off_changes_nothing(
    options: dict[str, Any], tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    model = llama_with(tmp_path, **options)
    set_forward_mode(model)
    assert forward_mode(model).packed
    assert warnings() == []


def test_an_option_that_comes_later_is_an_error(tmp_path: Path) -> None:
    """Never silently wrong: the trial saw it off."""
    model = llama_with(tmp_path, tilt=None)
    set_forward_mode(model)
    for layer in model.model.layers:
        layer.self_attn.forward.keywords["tilt"] = 0.5
    with pytest.raises(
        UnsupportedOptionError, match=r"^packed rows do not support attention option tilt of Llama.*: 0.5$"
    ):
        response_logps(model, pack(random_groups(2)))


# Masks


@pytest.mark.parametrize("window", [1, 7, 4096])
def test_the_rule_of_a_mask_is_followed_over_any_distance(window: int) -> None:
    def agrees(rule: Any, size: int | None) -> bool:
        return is_causal(PackedMask(rule, size), torch.device("cpu"))

    assert agrees(causal_mask_function, None)
    assert agrees(sliding_window_causal_mask_function(window), window)
    assert not agrees(sliding_window_causal_mask_function(window), None)
    assert not agrees(sliding_window_causal_mask_function(window), window + 1)
    assert not agrees(causal_mask_function, window)
    assert not agrees(sliding_window_bidirectional_mask_function(window), window)
    if window > 1:
        assert not agrees(chunked_causal_mask_function(window, torch.zeros(1, dtype=torch.int64)), window)


def test_a_mask_of_the_model_s_own_is_refused() -> None:
    q = torch.randn(1, 2, 3, 8)
    segments = pack([Group([1, 2], ([3],))]).segments
    packed_attention(nn.Module(), q, q, q, None, segments=segments)
    with pytest.raises(UnsupportedOptionError, match="attention_mask of Module: a tensor of shape"):
        packed_attention(nn.Module(), q, q, q, torch.zeros(1, 1, 3, 3), segments=segments)  # type: ignore[arg-type]


# The trial


def test_the_trial_leaves_the_model_as_it_was_and_is_strict(tmp_path: Path) -> None:
    model, original = (AutoModelForCausalLM.from_pretrained(write_model(tmp_path, "llama")).eval() for _ in range(2))
    scalings = [layer.self_attn.scaling for layer in model.model.layers]
    set_forward_mode(model)
    assert [layer.self_attn.scaling for layer in model.model.layers] == scalings
    rows = pack(trial._groups(32))

    def plain(model: Any) -> Tensor:
        return trial._plain_logps(model, rows)[0]

    for influence, rounding, tolerance in (
        (0.0, 0.0, 5e-6),
        (1.0, 0.0, 3e-4),
        (1.0, 5e-5, 3e-4),
        (1.0, 1e-4, 4e-4),
        (100.0, 0.0, 1e-3),
        (1.0, 1.0, 1e-3),
    ):  # of the prompt on the response that both have
        expected = (rows.owners == 0) * influence
        assert trial._tolerance(model, rows, expected, rounding) == tolerance
    with torch.no_grad():
        assert 0 < trial._rounding(original, rows, plain(original)) < 1e-5
        original.model.layers[0].register_forward_hook(lambda module, inputs, out: out * len(out))
        assert (
            trial._rounding(original, rows, plain(original)) > 0.1
        )  # a model for which it matters what else is in the batch
    model.bfloat16()
    assert trial._tolerance(model, rows, torch.zeros(0), 1.0) == 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2: soft cap, window", "gpt-oss: sinks, window"])
def test_in_bfloat16_too(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, name, 0.1)
    model = lm.load(folder, "bfloat16")
    assert forward_mode(model).packed
    expected = naive_logps(AutoModelForCausalLM.from_pretrained(folder).eval(), long_groups())
    torch.testing.assert_close(response_logps(model, pack(long_groups())), expected, rtol=0.01, atol=1.0)


@pytest.mark.parametrize("softcap", [1.0, 50.0])
def test_a_cap_inside_the_attention_shows_even_if_scores_are_small(
    softcap: float, tmp_path: Path, warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if our attention did not know the option: the scores of the trial are large enough to tell."""
    monkeypatch.setitem(MODELS, "gemma2", (GEMMA2, {"attn_logit_softcapping": softcap}, True))
    folder = write(tmp_path, "gemma2", 0.02)

    def swallow(*args: Any, softcap: float, **options: Any) -> Any:
        return packed_attention(*args, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, "prefdag_packed", swallow)
    model = lm.load(folder)
    assert not forward_mode(model).packed
    assert "log-probabilities differ by up to" in warnings()[0]


@pytest.mark.slow
def test_a_bent_head_shows_even_if_logits_are_small(tmp_path: Path) -> None:
    config = Gemma2Config(**SMALL, final_logit_softcapping=30.0, initializer_range=0.02)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert not forward_mode(lm.load(tmp_path)).headless
    assert not forward_mode(lm.load(tmp_path, packed=False)).headless


def test_rows_are_as_long_as_windows_and_positions_ask(tmp_path: Path) -> None:
    llama = LlamaConfig(max_position_embeddings=512)
    model = nn.Module()
    lengths = {}
    for windows in ((), (19,), (128,), (128, 4096)):
        model.config = llama  # type: ignore[assignment]
        groups = trial._groups(trial._longest_row(model, set(windows)))
        lengths[windows] = max(len(g.prompt) + max(map(len, g.responses)) for g in groups)
    assert lengths == {(): 32, (19,): 35, (128,): 144, (128, 4096): 144}
    for limit in (4, 8, 31):
        model.config = LlamaConfig(max_position_embeddings=limit)  # type: ignore[assignment]
        rows = pack(trial._groups(trial._longest_row(model, set()))).padded()[0]
        assert rows.shape[1] == limit


# The kernels


def by_the_formula(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """(1, T, heads, d), each head by itself."""
    outs = []
    for head in range(q.shape[1]):
        key, value = (t[0, head // (q.shape[1] // k.shape[1])] for t in (k, v))
        scores = 0.3 * q[0, head] @ key.T
        if softcap:
            scores = softcap * (scores / softcap).tanh()
        weights = scores.exp() * visible
        total = weights.sum(-1, keepdim=True) + (0 if sinks is None else sinks[head].exp())
        outs.append(weights / total @ value)
    return torch.stack(outs, dim=1)[None]


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_soft_caps_and_sinks_by_the_formula(
    prefix: int, window: int | None, softcap: float | None, with_sinks: bool
) -> None:
    """Values and gradients in float64, on the kernel with gradients of ours, on torch's, and by FlexAttention's math."""
    torch.manual_seed(0)
    packed = pack(random_groups(4, responses=None, seed=2, longest=9))
    n = len(packed.input_ids)
    q, k, v = (
        torch.randn(1, heads, length, 8, dtype=torch.float64, requires_grad=True)
        for heads, length in ((4, n), (2, prefix + n), (2, prefix + n))
    )
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True) if with_sinks else None
    visible = flex_mask(packed.segments, prefix, window, torch.device("cpu")).mask_mod
    mask = visible(torch.tensor(0), torch.tensor(0), torch.arange(n)[:, None], torch.arange(prefix + n)[None])
    expected = by_the_formula(q, k, v, mask, softcap, sinks)
    inputs = [q, k, v, *([] if sinks is None else [sinks])]
    upstream = torch.randn_like(expected)
    of_expected = torch.autograd.grad(expected, inputs, upstream)
    for dropout in (0.0, 1e-12):
        out = chunked_attention(q, k, v, packed.segments, 0.3, dropout, window, softcap, sinks)
        torch.testing.assert_close(out, expected)
        for a, b in zip(torch.autograd.grad(out, inputs, upstream), of_expected, strict=True):
            torch.testing.assert_close(a, b)
    low = [t.detach().float() for t in inputs]
    out = flex_packed_attention(
        flex_attention, *low[:3], packed.segments, 0.3, window, softcap, low[3] if with_sinks else None
    )
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
