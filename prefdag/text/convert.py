"""Converts a downloaded model, GGUF or Hugging Face folder, to the one form that later stages read."""

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tokenizers import Tokenizer

from prefdag.lifecycle.errors import DataError
from prefdag.sources.model_files import CONFIG, left_over, main_file

OTHER_HEADS = re.compile(r"For(Sequence|Token|Image)Classification|ForQuestionAnswering|ForMaskedLM|ForMultipleChoice")

logger = logging.getLogger(__name__)


def convert(source: Path, into: Path) -> None:
    """Write the model in `source` to the folder `into`: config, float32 safetensors, tokenizer.json, chat template.

    `source` holds one .gguf file, or config.json with .safetensors weights and tokenizer files. No code from the model
    runs, and nothing is unpickled. The output depends on the source's files only, not on its path.

    Raises:
        DataError: `source` holds no such model, or the model lacks weights, an EOS token or a fast tokenizer.
    """
    source, name = main_file(source)
    if name == CONFIG and (unread := left_over(source)):
        logger.warning("not read: %s; the weights are in other files", ", ".join(unread))
    model, tokenizer, missing, unused = _load(source, name)
    _require_language_model(model, name)
    if missing:  # transformers has initialised them at random
        raise DataError(f"{name}: {len(missing)} weights are missing, for example '{missing[0]}'; fetch all the files")
    if unused:
        logger.warning(
            "%d weights have no place in %s and are left out, for example '%s'",
            len(unused),
            type(model).__name__,
            unused[0],
        )
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


def _require_language_model(model: Any, name: str) -> None:
    """Raise `DataError` if the files are of a model with another head or of an encoder, or if weights stay quantised."""
    import torch

    published = next(iter(getattr(model.config, "architectures", None) or []), "")
    if OTHER_HEADS.search(published):
        raise DataError(f"{name}: the model is a {published}, not a causal language model; choose another model")
    if kept := {str(weight.dtype) for weight in model.parameters() if weight.dtype != torch.float32}:
        raise DataError(
            f"{name}: weights stay quantised or packed ({', '.join(sorted(kept))}); choose the unquantised model"
        )


@contextmanager
def _reading_once() -> Iterator[None]:
    """transformers parses a GGUF file three times, and maps all names of weights again for each module: half of the time.

    And it cuts a vocabulary into hundreds of thousands of slices. One of `numpy.memmap` takes several times as long as one of a
    plain array of the same mapped file.
    """
    import gguf
    import numpy as np

    names, mapped = cache(gguf.get_tensor_name_map), np.memmap
    plain = patch.object(np, "memmap", lambda *arguments, **named: np.asarray(mapped(*arguments, **named)))
    with plain, patch.multiple(gguf, GGUFReader=cache(gguf.GGUFReader), get_tensor_name_map=names):
        yield


def _load(source: Path, name: str) -> tuple[Any, Any, list[str], list[str]]:
    """The model (float32, on the CPU), its tokenizer, and the names of weights that are missing from the files or unused."""
    # These imports take eight seconds, if this is no fork (`warm.py`). Here, they cost nothing if the source cannot be fetched.
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
        # Standard error is where a progress bar goes that cannot be turned off.
        with redirect_stderr(StringIO()), _reading_once() if name.endswith(".gguf") else nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            loaded: Any = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **weights, **options)
    except Exception as error:  # the readers of the many formats share no narrower class
        text = " ".join(str(error).replace(f"{source}/", "").replace(str(source), "it").split()) or type(error).__name__
        if "trust_remote_code" in text:
            text = "it needs code of its own, and code that comes with a model is not run; choose another model"
        raise DataError(f"{name}: not a causal language model that transformers can read: {text}") from error
    model, report = loaded
    return model, tokenizer, sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
