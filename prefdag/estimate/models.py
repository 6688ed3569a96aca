"""The shapes of models: from a config.json, or published ones by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from prefdag.lifecycle.errors import DataError

BASE = Path("models/base")
_LLAMA = {"model_type": "llama", "max_position_embeddings": 8192}
# As in the config.json of each.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"model_type": "gpt2"},  # 124M
    "smollm2-1.7b": _LLAMA
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32}
    | {"num_key_value_heads": 32, "vocab_size": 49152, "tie_word_embeddings": True},
    "llama-3.1-8b": _LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
    "llama-3.1-70b": _LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    | {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}


def read_config(model: str | None) -> PretrainedConfig:
    """The config of a model: a name in `PUBLISHED`, a folder with a config.json, or that file; None: the pipeline's base model.

    Raises:
        DataError: there is no such model, or it is not a causal language model.
    """
    if model is not None and model in PUBLISHED:
        settings = dict(PUBLISHED[model])
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    path = BASE if model is None else Path(model)
    folder = path.parent if path.name == "config.json" else path
    if not (folder / "config.json").is_file():
        hint = "run `dvc repro download_model`, or give --model" if model is None else "give --model"
        raise DataError(f"{folder / 'config.json'}: not found; {hint} a folder, or one of {', '.join(PUBLISHED)}")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{folder / 'config.json'}: not a model's config: {reason}") from None
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise DataError(f"{folder / 'config.json'}: {config.model_type} is not a causal language model")
    return config
