"""Converts a downloaded model, GGUF or Hugging Face folder, to the one form that later stages read."""

import logging
import shutil
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from prefdag.lifecycle.errors import DataError

logger = logging.getLogger(__name__)


def convert(source: Path, into: Path) -> None:
    """Write the model in `source` to the folder `into`: config, float32 safetensors, tokenizer.json, chat template.

    `source` holds one .gguf file, or config.json with .safetensors weights and tokenizer files. No code from the model
    runs, and nothing is unpickled. The output depends on the source's files only, not on its path.

    Raises:
        DataError: `source` holds no such model, or the model lacks weights, an EOS token or a fast tokenizer.
    """
    name = _main_file(source)
    model, tokenizer, missing = _load(source, name)
    if missing:  # transformers has initialised them at random
        raise DataError(f"{name}: {len(missing)} weights are missing, for example '{missing[0]}'; fetch all the files")
    if tokenizer.eos_token is None and model.config.eos_token_id is None:
        raise DataError(f"{name}: the model has no EOS token, so no answer would end; choose another model")
    _save_tokenizer(tokenizer, source, into, name)
    tokens = Tokenizer.from_file(str(into / "tokenizer.json")).get_vocab_size()
    rows = model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise DataError(
            f"{name}: the tokenizer has {tokens} tokens, the model's embedding only {rows}; choose files that belong together"
        )
    model.save_pretrained(into)


def _save_tokenizer(tokenizer: Any, source: Path, into: Path, name: str) -> None:
    """Write the tokenizer's files, including tokenizer.json."""
    tokenizer.save_pretrained(into)
    if (source / "tokenizer.json").exists():
        # The published file: some tokenizer classes rebuild it from the vocabulary and lose the normaliser, for instance.
        shutil.copyfile(source / "tokenizer.json", into / "tokenizer.json")
    if not (into / "tokenizer.json").exists():
        raise DataError(f"{name}: the model has no fast tokenizer (tokenizer.json); choose a model that has one")


def _main_file(source: Path) -> str:
    """The name of the model's main file: the .gguf, or config.json."""
    ggufs = sorted(path.name for path in source.glob("*.gguf"))
    if len(ggufs) > 1:
        raise DataError(f"{ggufs[0]}: one of {len(ggufs)} .gguf files; keep only the one to use")
    if ggufs:
        return ggufs[0]
    for pattern in ("config.json", "*.safetensors"):
        if not any(source.glob(pattern)):
            names = ", ".join(sorted(path.name for path in source.iterdir())) or "no file"
            raise DataError(f"{pattern}: not found, nor is a .gguf file; the source has {names}")
    return "config.json"


def _load(source: Path, name: str) -> tuple[Any, Any, list[str]]:
    """The model (float32, on the CPU), its tokenizer, and the names of weights that are missing from the files."""
    # These imports take eight seconds. Here, they cost nothing if the source cannot be fetched.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as noise

    noise.set_verbosity_error()
    noise.disable_progress_bar()
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    weights: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    if name.endswith(".gguf"):
        options["gguf_file"] = name
        # A model with its weights in GGUF blocks can be neither trained nor saved.
        weights = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    logger.info("converting %s", name)
    try:
        with redirect_stderr(StringIO()):  # hides a progress bar that cannot be turned off
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            loaded: Any = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **weights, **options)
    except Exception as error:  # the readers of the many formats share no narrower class
        text = " ".join(str(error).replace(f"{source}/", "").replace(str(source), "it").split()) or type(error).__name__
        if "trust_remote_code" in text:
            text = "it needs code of its own, and code that comes with a model is not run; choose another model"
        raise DataError(f"{name}: not a causal language model that transformers can read: {text}") from error
    model, report = loaded
    return model, tokenizer, sorted(report["missing_keys"])
