"""Merges a LoRA adapter in peft's form into the model that `convert` wrote, so that training starts from both."""

import logging
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json, read_tensors, sha256
from prefdag.sources.model_files import ADAPTER, ADAPTER_WEIGHTS, TOKENIZERS, WEIGHTS, adapter_folder, main_file
from prefdag.tokenizer.files import read_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

BY_HASH = "sha256:"  # how an adapter of `prefdag export` names its reference
DESCRIPTION = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"}
# Options of LoRA that peft merges whatever their values are; any other option must have its default.
MERGED = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "task_type"),
}
UNCHANGED_BASE = (True, False, "gaussian", "orthogonal")  # starts of LoRA that leave the base model's weights alone
TEMPLATE = "chat_template.jinja"
TOLERANCE = 1e-4  # of the largest logit; float32 products in another order cost about 1e-5 of it
BY_HAND = "merge it with peft's merge_and_unload, and make the result download_model.source"

logger = logging.getLogger(__name__)


def merge(adapter: Path, source: Path, model: Path) -> None:
    """Merge the adapter in the folder `adapter` into the weights in `model`, which `convert` made of `source`.

    The merged model is read back, and must give the logits of the model with its adapter. Nothing is unpickled.

    Raises:
        DataError: this is no LoRA adapter of this model, or more than its weights would change.
    """
    adapter = adapter_folder(adapter)
    config = read_json(adapter / ADAPTER)
    _require_lora(config)
    _require_base(config, source, model)
    _require_same_tokenizer(adapter, model)
    expected = _merge(adapter, model)
    difference = float((_logits(_load(model)).double() - expected.double()).abs().max())
    allowed = TOLERANCE * float(expected.abs().max())
    if not difference <= allowed:
        raise DataError(
            f"{ADAPTER}: merged, it computes something else: logits differ by {difference:.1e}, at most {allowed:.1e} is "
            f"allowed; it may adapt a head and an embedding that are one tensor; choose an adapter of other layers"
        )
    logger.info("merged the adapter; the largest difference of a logit from the unmerged model is %.1e", difference)


def _require_lora(config: Any) -> None:
    """Raise `DataError` if the adapter is not LoRA, or has an option that merging would lose or that is unknown."""
    from peft import LoraConfig

    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise DataError(f"{ADAPTER}: peft_type: missing; it is no adapter's configuration of peft")
    kind = config["peft_type"]
    if kind in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"):
        raise DataError(
            f"{ADAPTER}: peft_type: {kind}: a prefix cannot be merged into weights; use a LoRA adapter or a whole model"
        )
    if kind != "LORA":
        raise DataError(f"{ADAPTER}: peft_type: {kind}: only LORA is merged here; {BY_HAND}")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise DataError(
            f"{ADAPTER}: task_type: {config['task_type']}: not of a causal language model; choose another adapter"
        )
    if config.get("init_lora_weights", True) not in UNCHANGED_BASE:
        raise DataError(
            f"{ADAPTER}: init_lora_weights: {config['init_lora_weights']}: it may have changed the base model's weights; "
            "convert it to plain LoRA, with path_initial_model_for_weight_conversion of peft's save_pretrained"
        )
    defaults = LoraConfig().to_dict()
    for name in sorted(config.keys() - MERGED - DESCRIPTION):
        if config[name] and config[name] != defaults.get(name):
            raise DataError(f"{ADAPTER}: {name}: {_short(config[name])}: not supported here; {BY_HAND}")


def _require_base(config: Mapping[str, Any], source: Path, model: Path) -> None:
    """Raise `DataError` if the adapter names another model by its hash."""
    base = str(config.get("base_model_name_or_path"))
    if not base.startswith(BY_HASH):
        logger.warning("%s: made for '%s'; only shapes tell whether download_model.source is that model", ADAPTER, base)
        return
    files = [folder / WEIGHTS for folder in (main_file(source)[0], model)]
    hashes = [sha256(file) for file in files if file.exists()]
    if base.removeprefix(BY_HASH) not in hashes:
        raise DataError(
            f"{ADAPTER}: made for a model whose {WEIGHTS} has the SHA-256 {base.removeprefix(BY_HASH)}, but that of "
            f"download_model.source has {hashes[0]}; an export has the right one in text_adapter/reference"
        )


def _require_same_tokenizer(adapter: Path, model: Path) -> None:
    """Raise `DataError` if tokenizer files beside the adapter say anything else than those of the model."""
    remedy = f"leave the tokenizer's files out of download_model.adapter to keep the model's, or {BY_HAND}"
    names = {path.name for path in adapter.iterdir()}
    if "tokenizer.json" in names:
        if read_tokenizer(adapter / "tokenizer.json").to_str() != read_tokenizer(model / "tokenizer.json").to_str():
            raise DataError(f"tokenizer.json: the adapter's is not that of the model; {remedy}")
    elif slow := sorted(names & set(TOKENIZERS) - {"tokenizer_config.json"}):
        raise DataError(f"{slow[0]}: without tokenizer.json, it cannot be compared with that of the model; {remedy}")
    mine, needed = _conventions(adapter), _conventions(model)
    for name, value in mine.items():
        if value is not None and value != needed[name]:
            raise DataError(f"tokenizer_config.json: {name}: the adapter's is not that of the model; {remedy}")


def _conventions(folder: Path) -> dict[str, str | None]:
    """The chat template and the end of a text, as far as the folder's files name them."""
    path, template = folder / "tokenizer_config.json", folder / TEMPLATE
    config: Any = read_json(path) if path.exists() else {}
    end = config.get("eos_token")
    jinja = template.read_text("utf-8") if template.exists() else config.get("chat_template")
    return {
        "chat_template": jinja.strip() if isinstance(jinja, str) else jinja and str(jinja),
        "eos_token": end["content"] if isinstance(end, dict) else end,
    }


def _merge(adapter: Path, model: Path) -> "Tensor":
    """Merge the weights in place. Returns the logits of the model with its adapter."""
    import warnings

    from peft import PeftModel, get_peft_model_state_dict

    stored = read_tensors(adapter / ADAPTER_WEIGHTS, "torch")
    base = _load(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that it leaves out: they are errors below
            adapted: Any = PeftModel.from_pretrained(base, str(adapter)).eval()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        text = _short(error).replace(f"{adapter}/", "")
        raise DataError(f"{ADAPTER}: not an adapter of the model in download_model.source: {text}") from error
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for name in sorted(stored.keys() | expected.keys()):
        if name not in stored or name not in expected:
            fault = "missing" if name not in stored else "no tensor of this adapter on this model"
        elif stored[name].shape != expected[name].shape:
            fault = f"of shape {tuple(stored[name].shape)}, expected {tuple(expected[name].shape)}"
        elif not stored[name].isfinite().all():
            fault = "not finite"
        else:
            continue
        raise DataError(f"{ADAPTER_WEIGHTS}: {name}: {fault}; choose an adapter of this model")
    logits = _logits(adapted)
    adapted.merge_and_unload().save_pretrained(model)
    return logits


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as noise

    noise.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )


def _logits(model: Any) -> "Tensor":
    """Logits of two rows of 16 tokens, evenly spaced over the vocabulary."""
    import torch

    rows = model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        logits: Tensor = model(input_ids=(torch.arange(32) * rows // 32).view(2, 16)).logits
    return logits


def _short(value: object) -> str:
    """On one line of at most 200 characters."""
    return textwrap.shorten(str(value) or type(value).__name__, 200, placeholder=" ...")
