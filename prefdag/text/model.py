"""Causal language models from disk, to score and to generate with. Safetensors only, no remote code.

A policy is the model itself (every weight is trained), or a `PeftModel` around it. Either is called as the model is.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from prefdag.runtime.errors import DataError
from prefdag.runtime.process import process
from prefdag.text.scoring.layers import speed_up, speed_up_adapters
from prefdag.text.scoring.states import find_route

if TYPE_CHECKING:
    from prefdag.config.types import Dtype

disable_progress_bar()  # of a second; ours are of minutes
warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)  # peft knows no other name
warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)  # peft finds out by itself: GPT-2
DTYPES: dict["Dtype", torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ADAPTER_CONFIG = "adapter_config.json"

Policy = PeftModel | PreTrainedModel


def load(folder: Path, dtype: "Dtype" = "float32", *, packed: bool = True, **options: Any) -> PreTrainedModel:
    """The model in `folder`, in eval mode, on a GPU where there is one.

    Packed rows are for scoring (see `states.py`); a model that generates keeps transformers' own attention.
    """
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=DTYPES[dtype],
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        **options,
    )
    model.eval().to(process().device)
    speed_up(model)
    find_route(model, packed=packed)
    return model


class ReferenceAndPolicy(NamedTuple):
    """Both models of DPO, to call or to `generate` with, side by side."""

    reference: nn.Module
    policy: nn.Module


class Unadapted(nn.Module):
    """A policy with its adapter off: the reference, without a second copy of the weights, and without a gradient."""

    def __init__(self, policy: PeftModel) -> None:
        super().__init__()
        self.policy = policy

    @torch.no_grad()
    def forward(self, **inputs: Any) -> Any:
        with self.policy.disable_adapter():
            return self.policy(**inputs)

    def generate(self, **inputs: Any) -> Any:
        with self.policy.disable_adapter():
            return self.policy.generate(**inputs)


def load_to_generate(reference: Path, policy: Path) -> ReferenceAndPolicy:
    """`load_models`, ready to answer. Raises `DataError` if either is missing."""
    for folder in (reference, policy):
        if not folder.is_dir():
            raise DataError(f"{folder}: not found; `dvc repro` makes it")
    return load_models(reference, policy, packed=False)


def load_models(reference: Path, policy: Path, *, packed: bool = True) -> ReferenceAndPolicy:
    """The model in `reference`, and the policy that `save_policy` wrote to `policy`, in float32 and eval mode.

    Adapters that were trained on 4 bits (qlora) are laid over the full weights, as for deployment.
    """
    if not (policy / ADAPTER_CONFIG).exists():
        return ReferenceAndPolicy(load(reference, packed=packed), load(policy, packed=packed))
    adapted = PeftModel.from_pretrained(load(reference, packed=packed), str(policy)).eval()
    speed_up_adapters(lora_layers(adapted).values())
    return ReferenceAndPolicy(Unadapted(adapted), adapted)


def lora_layers(policy: Policy) -> dict[str, Any]:
    """The adapted layers, by their names in the base model; empty where there is no LoRA."""
    return {name: module for name, module in adapted_model(policy).named_modules() if isinstance(module, LoraLayer)}


def adapted_model(policy: Policy) -> nn.Module:
    """The base model where adapters are a part of it (LoRA); the policy otherwise."""
    if isinstance(policy, PeftModel) and not policy.active_peft_config.is_prompt_learning:
        return policy.get_base_model()
    return policy
