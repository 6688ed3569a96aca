"""Causal language models on disk and in memory: loading, LoRA, merging. Safetensors only, no remote code."""

import shutil
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from prefdag.artifacts import write_json
from prefdag.config import Dtype, Lora
from prefdag.errors import ParamsError
from prefdag.process import process
from prefdag.text import attention

disable_progress_bar()  # of a second; ours are of minutes
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # asked for by peft
DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(folder: Path, dtype: Dtype = "float32") -> PreTrainedModel:
    """The model in `folder`, in eval mode, on a GPU where there is one, computing packed rows (see `packing.py`)."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=DTYPES[dtype],
        attn_implementation=attention.NAME,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    return model.eval().to(process().device)


def add_lora(model: PreTrainedModel, config: Lora, seed: int) -> PeftModel:
    """`model` with fresh adapters (B = 0: the same function as before), which alone are trained.

    Raises:
        ParamsError: no module is called as one of the target modules.
    """
    linear = {
        name.rpartition(".")[2] for name, m in model.named_modules() if getattr(m, "weight", torch.empty(0)).ndim == 2
    }
    for target in config.target_modules:
        if target not in linear:
            raise ParamsError(
                f"params.yaml: lora.target_modules: this model has no module '{target}'; choose among {sorted(linear)}"
            )
    torch.manual_seed(seed)
    policy = get_peft_model(
        model,
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=config.target_modules,
            task_type="CAUSAL_LM",
        ),
    )
    # The base model's own dropout stays off, as it was for the reference; that of the adapters is on if asked for.
    policy.eval()
    for name, module in policy.named_modules():
        if "lora_dropout" in name:
            module.train()
    return policy


def save_merged(model: PeftModel, folder: Path) -> None:
    """Fold the adapters into the weights (the model is used up by that) and write a model folder that loads without peft."""
    model.merge_and_unload().save_pretrained(folder)


def copy_tokenizer(base: Path, folder: Path) -> None:
    """Copy tokenizer and chat template, byte for byte, from one model folder into another."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)


def save_adapter(model: PeftModel, folder: Path, base: Path) -> None:
    """Write the adapters alone, as peft loads them on top of the model in `base`; the same bytes every time."""
    save_file(get_peft_model_state_dict(model), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict() | {"base_model_name_or_path": str(base), "inference_mode": True}
    # peft keeps target modules in a set, whose order differs from process to process.
    write_json(folder / "adapter_config.json", {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()})


def load_policy(reference: Path, adapter: Path, dtype: Dtype = "float32") -> PeftModel:
    """The model in `reference` under the adapters in `adapter`; `disable_adapter()` gives the reference back."""
    return PeftModel.from_pretrained(load(reference, dtype), str(adapter)).eval()
