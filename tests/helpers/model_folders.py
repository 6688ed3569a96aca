"""Folders of tiny language models with a tokenizer, as on a hub."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

TOKENS = ["<|endoftext|>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"


def tiny(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": len(TOKENS), "bos_token_id": 1, "eos_token_id": 2}
    if architecture == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **common)).eval()
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    tied = architecture == "llama-tied"
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tied, **sizes, **heads, **common)).eval()


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, [("a", "b")]))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(TOKENS[:3])
    return made


def model_folder(folder: Path, architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    tiny(architecture).to(dtype).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<|endoftext|>",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder
