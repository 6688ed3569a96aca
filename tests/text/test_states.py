"""Shared prompts, padded rows and single responses give the same log-probabilities and gradients in any model."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from gradients import PRECISIONS, assert_close, gradients
from naive_logps import naive_logps
from tiny_models import ADAPTERS, TARGETS, VOCABULARY, disturb, lora, random_groups, with_adapter, write_model
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from prefdag.text import model as lm
from prefdag.text import trainable
from prefdag.text.scoring import chunked, flex, trial
from prefdag.text.scoring.chunked import chunked_attention
from prefdag.text.scoring.flex import flex_mask
from prefdag.text.scoring.logps import response_logps
from prefdag.text.scoring.packing import Group, Pack, pack
from prefdag.text.scoring.states import ForwardMode, forward_mode

# Lengths (prompt, responses), from one longer than an attention chunk to a single token.
LENGTHS = [(97, (3, 20)), (5, (100, 1)), (1, (1,)), (30, (7, 8, 9)), (2, (2, 2))]


def groups(seed: int = 0) -> list[Group]:
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (n,), generator=generator).tolist()

    return [Group(ids(prompt), tuple(ids(n) for n in responses)) for prompt, responses in LENGTHS]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_shared_prompts_padded_rows_and_single_responses_agree(kind: str, dtype: Any, tmp_path: Path) -> None:
    folder = write_model(tmp_path / kind, kind)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    packed = pack(groups())
    expected = naive_logps(plain, groups())
    of_expected = gradients(expected, plain)
    off, relative = PRECISIONS[dtype]
    for shared in (True, False):
        model = lm.load(folder, dtype, packed=shared)
        assert forward_mode(model) == ForwardMode(packed=shared, headless=True)
        logps = response_logps(model, packed)
        torch.testing.assert_close(logps, expected, rtol=0, atol=off)
        assert_close(gradients(logps, model), of_expected, relative)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_groups_of_random_lengths_agree(seed: int, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "llama", "llama", seed)
    many = random_groups(9, responses=None, seed=seed, longest=40)
    expected = naive_logps(AutoModelForCausalLM.from_pretrained(folder).eval(), many)
    for shared in (True, False):
        torch.testing.assert_close(
            response_logps(lm.load(folder, packed=shared), pack(many)), expected, rtol=1e-5, atol=1e-4
        )


def test_the_padded_rows_of_a_pack() -> None:
    packed = pack([Group([1, 2], ([3, 4], [5])), Group([6], ([7, 8],))])
    ids, mask, rows, columns = packed.padded()
    assert ids.tolist() == [[1, 2, 3, 4], [1, 2, 5, 0], [6, 7, 8, 0]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 1), (2, 0), (2, 1)]
    assert ids[rows, columns + 1].tolist() == packed.targets.tolist()


# Architectures

SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64}


def write(folder: Path, model: Any, **generation: Any) -> Path:
    torch.manual_seed(0)
    model.save_pretrained(folder)
    return folder


def test_a_model_without_positions_is_scored_in_padded_rows_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path, MambaForCausalLM(MambaConfig(**SMALL, state_size=4)))
    trial._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "prefdag"):
        model = lm.load(folder)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("prefdag")] == [
        "mamba models do not support packed rows (they do not use transformers' attention interface); "
        "using one padded row per response, which is slower"
    ]
    assert not forward_mode(model).packed
    few = random_groups(5, responses=None, seed=1)
    expected = naive_logps(AutoModelForCausalLM.from_pretrained(folder).eval(), few)
    torch.testing.assert_close(response_logps(model, pack(few)), expected, rtol=1e-4, atol=1e-3)


def test_a_head_that_is_more_than_a_layer_is_left_to_the_model(tmp_path: Path) -> None:
    """Gemma 2 caps its logits: c tanh(z / c)."""
    config = Gemma2Config(**SMALL, **HEADS, final_logit_softcapping=5.0, attn_logit_softcapping=None)
    folder = write(tmp_path, Gemma2ForCausalLM(config))
    model = lm.load(folder)
    assert forward_mode(model) == ForwardMode(packed=True, headless=False)
    few = random_groups(5, responses=None, seed=1)
    expected = naive_logps(AutoModelForCausalLM.from_pretrained(folder).eval(), few)
    torch.testing.assert_close(response_logps(model, pack(few)), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_a_sliding_window_slides_over_prompt_and_response(tmp_path: Path) -> None:
    folder = write(tmp_path, MistralForCausalLM(MistralConfig(**SMALL, **HEADS, sliding_window=7)))
    model, plain = lm.load(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    assert forward_mode(model).packed
    torch.testing.assert_close(
        response_logps(model, pack(groups())), naive_logps(plain, groups()), rtol=1e-4, atol=1e-3
    )
    config = AutoConfig.from_pretrained(folder)
    config.sliding_window = None
    everywhere = AutoModelForCausalLM.from_pretrained(folder, config=config).eval()
    assert (naive_logps(everywhere, groups()) - naive_logps(plain, groups())).abs().max() > 0.1  # the window matters


# Attention


def dense(packed: Pack, prefix: int, window: int | None) -> Tensor:
    """The mask (T, P + T) of which token sees which, decided for each pair of tokens."""
    of: list[tuple[int, int, int]] = []
    for number, (_, prompt, responses) in enumerate(packed.segments):
        of += [(number, 0, i) for i in range(prompt)]
        of += [(number, b + 1, prompt + i) for b, n in enumerate(responses) for i in range(n)]
    rows = [[True] * prefix for _ in of]
    for row, (group, branch, place) in zip(rows, of, strict=True):
        for other, other_branch, other_place in of:
            mine = group == other and other_branch in (0, branch)
            row.append(mine and 0 <= place - other_place < (window or 1000))
        if window:
            row[:prefix] = [place + prefix - i < window for i in range(prefix)]
    return torch.tensor(rows)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("longest", [2, 96])
def test_attention_is_that_of_a_dense_mask(
    prefix: int, window: int | None, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients in float64, with two query heads per key head; and FlexAttention's mask is the same."""
    monkeypatch.setattr(chunked, "CHUNK_TOKENS", longest)
    chunked._chunks.cache_clear()
    torch.manual_seed(0)
    packed = pack(random_groups(4, responses=None, seed=2))
    n = len(packed.input_ids)
    q, k, v = (
        torch.randn(1, heads, length, 8, dtype=torch.float64, requires_grad=True)
        for heads, length in ((4, n), (2, prefix + n), (2, prefix + n))
    )
    mask = dense(packed, prefix, window)
    by_kernel = chunked_attention(q, k, v, packed.segments, scaling=0.3, sliding_window=window)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    # `by_kernel` has our own gradient; `by_torch` has torch's, as on GPUs without FlexAttention.
    by_torch = chunked_attention(q, k, v, packed.segments, scaling=0.3, dropout=1e-12, sliding_window=window)
    upstream = torch.randn_like(expected)
    of_expected = torch.autograd.grad(expected, (q, k, v), upstream)
    for out in (by_kernel, by_torch):
        torch.testing.assert_close(out, expected)
        for a, b in zip(torch.autograd.grad(out, (q, k, v), upstream), of_expected, strict=True):
            torch.testing.assert_close(a, b)
    visible = flex_mask(packed.segments, prefix, window, torch.device("cpu")).mask_mod
    rows, columns = torch.arange(n)[:, None], torch.arange(prefix + n)[None]
    assert torch.equal(visible(torch.tensor(0), torch.tensor(0), rows, columns), mask)
    chunked._chunks.cache_clear()
    if longest == 96:  # interpreted, as this is a CPU; a GPU runs it compiled
        block_mask = flex_mask(packed.segments, prefix, window, torch.device("cpu"))
        by_flex = flex_attention(
            *(t.detach().float() for t in (q, k, v)), block_mask=block_mask, scale=0.3, enable_gqa=True
        )
        torch.testing.assert_close(by_flex.transpose(1, 2).double(), expected, rtol=1e-4, atol=1e-5)


def test_chunked_attention_replaces_flex_attention_that_cannot_be_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: fail)
    monkeypatch.setattr(flex, "_compiled", flex._compiled.__wrapped__)
    q = torch.zeros(1, 2, 5, 8, dtype=torch.bfloat16)
    with caplog.at_level(logging.WARNING, "prefdag"):
        assert flex.flex_for(q, q, q, None, None, None) is None
    assert (
        "FlexAttention does not work here for heads of width 8 in bfloat16 (RuntimeError: no compiler)" in caplog.text
    )


# Gradient checkpointing


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_checkpointed_gradients_are_the_same(kind: str, adapter: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / kind, kind)
    policy = with_adapter(folder, ADAPTERS[adapter])
    disturb(policy)
    expected = gradients(response_logps(policy, pack(groups())), policy)
    layers = [m for m in policy.modules() if isinstance(m, trainable.GradientCheckpointingLayer)]
    calls: list[int] = []
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    trainable.checkpoint_gradients(policy)
    assert_close(gradients(response_logps(policy, pack(groups())), policy), expected, 1e-5)
    assert len(calls) == 2 * len(layers)
    assert {m.training for m in policy.modules() if isinstance(m, torch.nn.Dropout)} <= {False}


def test_dropout_is_the_same_in_both_computations(tmp_path: Path) -> None:
    policy = with_adapter(write_model(tmp_path / "llama", "llama"), lora(dropout=0.5))
    disturb(policy)
    results = []
    for checkpointed in (False, True):
        if checkpointed:
            trainable.checkpoint_gradients(policy)
        torch.manual_seed(0)
        results.append(gradients(response_logps(policy, pack(groups())), policy))
    assert_close(results[1], results[0], 1e-5)
