"""Tiny random models and training settings for the tests. Nothing is fetched."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from prefdag.config.adapter import Adapter, Full, Lora, Prefix
from prefdag.config.training import Training
from prefdag.text import model as lm
from prefdag.text import trainable
from prefdag.text.scoring.packing import Group

VOCABULARY = 64
TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}


def write_model(folder: Path, kind: str, seed: int = 0, vocabulary: int = VOCABULARY, **tokens: int) -> Path:
    """Write a model folder: two layers of width 32 with weights large enough that a wrong mask or position shows.

    "llama" has two query heads per key head and no dropout; "gpt2" has biases, transposed weights and dropout of 0.1.
    `tokens` are ids for its config: bos_token_id, eos_token_id.
    """
    torch.manual_seed(seed)
    model: PreTrainedModel
    if kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                initializer_range=0.3,
                **tokens,
            )
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, **tokens
            )
        )
    model.save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> Path:
    """A token per lower-case letter and digit, within the vocabulary of `write_model`; anything else is a question mark."""
    tokens = ["?", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_word_tokenizer(folder: Path, words: Sequence[str]) -> None:
    """A token per word: these, and the numbers up to 39; within the vocabulary of `write_model`."""
    every = {word: i for i, word in enumerate(["</s>", "<unk>", *words, *map(str, range(40))])}
    tokenizer = Tokenizer(models.WordLevel(every, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}')


def write_both(folder: Path) -> dict[str, Path]:
    """A model folder of each kind."""
    return {kind: write_model(folder / kind, kind) for kind in TARGETS}


def lora(**changes: Any) -> Lora:
    """A small LoRA on the usual modules of the architecture."""
    default = Lora(kind="lora", rank=2, alpha=4, dropout=0.0, target_modules="auto", rslora=False, dora=False)
    return dataclasses.replace(default, **changes)


# The scale alpha / rank is 4 / 2; that of rslora, alpha / sqrt(rank), differs.
ADAPTERS: dict[str, Adapter] = {
    "lora": lora(),
    "rslora": lora(rslora=True),
    "dora": lora(dora=True),
    "prefix": Prefix(kind="prefix", tokens=3),
    "full": Full(kind="full"),
}


def with_adapter(folder: Path, config: Adapter, seed: int = 0) -> lm.Policy:
    """The model in `folder` as a fresh policy."""
    return trainable.add_adapter(lm.load(folder), config, seed, "dpo_text.adapter")


def with_lora(folder: Path, seed: int = 0, dropout: float = 0.0, rank: int = 2) -> PeftModel:
    """The model in `folder` with fresh LoRA on its attention."""
    policy: Any = with_adapter(folder, lora(rank=rank, alpha=2 * rank, dropout=dropout), seed)
    return policy


def disturb(model: torch.nn.Module, seed: int = 1) -> None:
    """Move all trained parameters by random amounts, so that the policy differs from its reference."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.3)


def random_groups(n: int, responses: int | None = 2, seed: int = 0, longest: int = 6) -> list[Group]:
    """Groups of random lengths with `responses` responses each; None: one to three."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    def ids() -> list[int]:
        return torch.randint(0, VOCABULARY, (draw(1, longest),), generator=generator).tolist()

    return [Group(ids(), tuple(ids() for _ in range(responses or draw(1, 3)))) for _ in range(n)]


def training(kind: type[Training] = Training, **changes: Any) -> Any:
    """Settings to train a tiny model with a constant learning rate."""
    default = kind(
        epochs=1,
        batch_size=4,
        micro_batch_size=4,
        optimizer="adamw",
        learning_rate=1e-2,
        weight_decay=0.0,
        warmup_fraction=0.0,
        schedule="constant",
        max_grad_norm=1.0,
        precision="float32",
        validate_every=100,
        checkpoint_every=100,
    )
    return dataclasses.replace(default, **changes)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters and buffers."""
    return {name: t.detach().clone() for name, t in model.state_dict().items()}
