"""A small random language model, which takes the place of the profile's where its size and its weights prove nothing."""

import json
import shutil
from pathlib import Path

SIZES = {
    "hidden_size": 64,
    "head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "initializer_range": 0.1,
}


def write_small(base: Path, folder: Path) -> None:
    """Write a model with the architecture and the tokenizer of `base`, and random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    config = json.loads((base / "config.json").read_text()) | SIZES
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
