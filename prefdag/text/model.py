"""Causal language models loaded from disk, for scoring and generation. Safetensors only, no remote code.

A policy is the model itself (full fine-tuning) or a `PeftModel` around it. Both are called like the model.
"""

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from prefdag.distributed.process import process
from prefdag.lifecycle.errors import DataError
from prefdag.recorded import recorded
from prefdag.runtime.artifacts import read_tensors
from prefdag.text.scoring.layers import speed_up, speed_up_adapters
from prefdag.text.scoring.trial import set_forward_mode

if TYPE_CHECKING:
    from prefdag.runtime.types import Dtype

disable_progress_bar()  # loading takes about a second
warnings.filterwarnings(
    "ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning
)  # peft still uses the old name
warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)  # peft sets it itself for GPT-2
DTYPES: dict["Dtype", torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Policy = PeftModel | PreTrainedModel


def load(folder: Path, dtype: "Dtype" = "float32", *, packed: bool = True, **options: Any) -> PreTrainedModel:
    """Load the model in `folder`, in eval mode, on a GPU if there is one.

    Args:
        packed: whether to use packed rows, for scoring (see `states.py`). Without them, the model keeps transformers' own
            attention, as generation needs.
        options: passed to `from_pretrained`.

    Raises:
        DataError: the folder is missing or not a model, or its tensors are not exactly those of its architecture.
    """
    model: Any = read_model(folder, dtype, **options).to(process().device)
    model.prefdag_attention = model.config._attn_implementation
    speed_up(model)
    set_forward_mode(model, packed=packed)
    return model


def read_model(folder: Path, dtype: "Dtype", **options: Any) -> PreTrainedModel:
    """The model in `folder`, in eval mode, as transformers makes it. Arguments and errors are those of `load`."""
    with named_errors(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            recorded(folder),
            dtype=DTYPES[dtype],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    model: PreTrainedModel
    model, report = loaded
    for kind in ("missing", "unexpected", "mismatched"):
        if names := sorted(map(str, report[f"{kind}_keys"])):
            raise DataError(f"{folder}: {kind} tensor {names[0]}, of {len(names)}; `dvc repro` makes the model again")
    return model.eval()


@contextmanager
def named_errors(folder: Path) -> Iterator[None]:
    """In this context, whatever transformers raises about the model in `folder` becomes a `DataError`."""
    if not folder.is_dir():
        raise DataError(f"{folder}: not found; run `dvc repro` first")
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise DataError(
            f"{folder}: not a causal language model ({_short(error)}); `dvc repro` makes it again"
        ) from error


class ReferenceAndPolicy(NamedTuple):
    """The two models of DPO, to call or to `generate` with."""

    reference: nn.Module
    policy: nn.Module


class Unadapted(nn.Module):
    """A policy with its adapter disabled: the reference, without a second copy of the weights and without gradients."""

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


def load_models(reference: Path, policy: Path, *, packed: bool = True) -> ReferenceAndPolicy:
    """Load the model in `reference` and the policy that `save_policy` wrote to `policy`, in float32 and eval mode.

    Adapters trained on 4-bit weights (qlora) are applied to the full weights, as in deployment.
    """
    if not (policy / ADAPTER_CONFIG).exists():
        return ReferenceAndPolicy(load(reference, packed=packed), load(policy, packed=packed))
    with_adapter = load_adapter(load(reference, packed=packed), policy)
    speed_up_adapters(lora_layers(with_adapter).values())
    return ReferenceAndPolicy(Unadapted(with_adapter), with_adapter)


def load_adapter(model: nn.Module, folder: Path) -> PeftModel:
    """`model` with the adapter that `save_policy` wrote to `folder`, in eval mode.

    peft itself leaves out tensors that do not fit, and starts those that are missing from scratch.

    Raises:
        DataError: the adapter does not fit the model, or a tensor is missing, additional, of another type or not finite.
    """
    path = recorded(folder) / ADAPTER_WEIGHTS
    stored = read_tensors(path, "torch")
    try:
        adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise DataError(
            f"{folder}: not an adapter of this model ({_short(error)}); `dvc repro` makes it again"
        ) from error
    expected = get_peft_model_state_dict(adapted)
    for name in sorted(stored.keys() | expected.keys()):
        mine, needed = stored.get(name), expected.get(name)
        if mine is None or needed is None:
            fault = "missing" if mine is None else "not a tensor of this adapter"
        elif (mine.shape, mine.dtype) != (needed.shape, needed.dtype):
            fault = f"{mine.dtype} {tuple(mine.shape)}, expected {needed.dtype} {tuple(needed.shape)}"
        elif not mine.isfinite().all():
            fault = "not finite"
        else:
            continue
        raise DataError(f"{path}: {name}: {fault}; `dvc repro` makes the adapter again")
    return adapted


def _short(error: Exception) -> str:
    """An error's text in one line of at most 200 characters."""
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...")


def prepare_generation(policy: Policy) -> None:
    """Make a policy that was trained, on packed rows, ready to `generate`.

    In eval mode and float32, with transformers' own attention.
    """
    model: Any = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    extract_model_from_parallel(policy, keep_fp32_wrapper=False)  # takes off accelerate's autocast
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        model.gradient_checkpointing_disable()
    model.set_attn_implementation(model.prefdag_attention)
    policy.eval()
    set_forward_mode(model, packed=False)


def lora_layers(policy: Policy) -> dict[str, Any]:
    """LoRA layers by their names in the base model; empty without LoRA."""
    return {name: module for name, module in adapted_model(policy).named_modules() if isinstance(module, LoraLayer)}


def adapted_model(policy: Policy) -> nn.Module:
    """The base model if the adapter is part of its layers (LoRA), otherwise the policy itself."""
    if isinstance(policy, PeftModel) and not policy.active_peft_config.is_prompt_learning:
        return policy.get_base_model()
    return policy
