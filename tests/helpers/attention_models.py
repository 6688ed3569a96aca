"""Small models with every kind of attention: soft caps, sinks, sliding windows, chunks, values of another width."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_models import VOCABULARY
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen2MoeConfig,
)

from prefdag.text.scoring.packing import Group

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
GEMMA2 = functools.partial(Gemma2Config, query_pre_attn_scalar=8, sliding_window=19, final_logit_softcapping=None)
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
QWEN: dict[str, Any] = {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 19}

# Configs by what is special about their attention, and whether it can be packed.
MODELS: dict[str, tuple[Callable[..., Any], dict[str, Any], bool]] = {
    "llama": (LlamaConfig, {}, True),
    "gpt2": (GPT2Config, {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4}, True),
    "gemma2: soft cap, window": (GEMMA2, {"attn_logit_softcapping": 3.0}, True),
    "gemma2: the usual soft cap": (GEMMA2, {"attn_logit_softcapping": 50.0}, True),
    "gemma3: two kinds of layers": (Gemma3TextConfig, {"sliding_window": 19, "layer_types": None}, True),
    "gpt-oss: sinks, window": (
        GptOssConfig,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 19},
        True,
    ),
    "qwen2: window": (Qwen2Config, QWEN, True),
    "qwen2-moe: window in the mask only": (
        Qwen2MoeConfig,
        QWEN | EXPERTS | {"shared_expert_intermediate_size": 32},
        True,
    ),
    "deepseek-v3: values of another width": (
        DeepseekV3Config,
        {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
        | {"head_dim": 4, "num_key_value_heads": 4, "first_k_dense_replace": 9},
        True,
    ),
    "llama4: chunks": (
        Llama4TextConfig,
        {"attention_chunk_size": 19, "num_local_experts": 2, "intermediate_size_mlp": 64},
        False,
    ),
    "lfm2: convolutions": (Lfm2Config, {"layer_types": ["conv", "full_attention"] * 2}, False),
}


def long_groups() -> list[Group]:
    """Rows of up to 150 tokens: past every window and chunk here, and past a chunk of queries."""
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (n,), generator=generator).tolist()

    lengths = [(130, (20, 9)), (20, (40, 25)), (3, (5,))]
    return [Group(ids(prompt), tuple(ids(n) for n in responses)) for prompt, responses in lengths]


def write(folder: Path, name: str, weights: float, width: int = 8) -> Path:
    """A model with random weights of that size, and heads of that width if it is not GPT-2 or DeepSeek."""
    kind, options, _ = MODELS[name]
    sizes = {} if name == "gpt2" else SMALL | {"head_dim": width}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**{**sizes, **options, "initializer_range": weights}))
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.ndim > 1 or "sinks" in key:
                p.normal_(std=weights if p.ndim > 1 else 2.0)
    model.save_pretrained(folder)
    return folder
