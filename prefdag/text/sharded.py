"""Models that are divided over the processes while they are loaded: no process ever holds, or reads, all of the weights.

transformers finds each process's parts in the safetensors files. A second model, of placeholders, gets the adapter, is divided
by `sharding.shard`, and takes the parts over.
"""

import copy
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from prefdag.distributed import sharding
from prefdag.distributed.process import process
from prefdag.text.model import (
    ADAPTER_CONFIG,
    Policy,
    ReferenceAndPolicy,
    Unadapted,
    load,
    load_adapter,
    load_models,
    lora_layers,
    named_errors,
    read_model,
)
from prefdag.text.scoring.layers import speed_up, speed_up_adapters
from prefdag.text.scoring.trial import set_forward_mode

if TYPE_CHECKING:
    from prefdag.runtime.types import Dtype, Shard

logging.getLogger("transformers.distributed.mixin").setLevel(logging.ERROR)  # warns of rules that a model does not need


def load_sharded(
    folder: Path,
    dtype: "Dtype" = "float32",
    adapt: Callable[[PreTrainedModel], Policy] = lambda model: model,
    *,
    packed: bool = True,
) -> Policy:
    """As `load`, but each process has only a part of the weights. All processes must call it. One process has them all.

    Args:
        adapt: makes a policy of the model, such as by adding LoRA, whose random start is that of one process.

    Raises:
        DataError: as `load`.
    """
    if process().num_processes == 1:
        return adapt(load(folder, dtype, packed=packed))
    parts = _read_parts(folder, dtype)
    model: Any = _placeholders(parts)
    model.prefdag_attention = model.config._attn_implementation
    speed_up(model)
    values = _taken(parts)
    del parts
    slots = list(_slots(model))
    policy = adapt(model)
    _forget(slots)
    sharding.shard(model, [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)])
    _fill(slots, values)
    with policy.disable_adapter() if isinstance(policy, PeftModel) else nullcontext():
        set_forward_mode(model, packed=packed)
    sharding.reshard(model)
    model._is_fsdp_managed_module = True  # `generate` then goes on until the last process has its answers
    return policy


def load_to_score(folder: Path, dtype: "Dtype" = "float32", *, shard: "Shard") -> nn.Module:
    """The model in `folder`, to compute log-probabilities with."""
    return load_sharded(folder, dtype) if shard == "full" else load(folder, dtype)


def load_both(reference: Path, policy: Path, *, shard: "Shard", packed: bool = True) -> ReferenceAndPolicy:
    """As `load_models`, divided over the processes if `shard` says so."""
    if shard == "none" or process().num_processes == 1:
        return load_models(reference, policy, packed=packed)
    if not (policy / ADAPTER_CONFIG).exists():
        return ReferenceAndPolicy(load_sharded(reference, packed=packed), load_sharded(policy, packed=packed))
    adapted: Any = load_sharded(reference, adapt=lambda model: load_adapter(model, policy), packed=packed)
    speed_up_adapters(lora_layers(adapted).values())
    return ReferenceAndPolicy(Unadapted(adapted), adapted)


class _Slot(NamedTuple):
    """A place of a weight: `module._parameters[key]`. A tied weight has several."""

    module: nn.Module
    key: str
    name: str  # of the weight in the model without adapter


def _slots(model: nn.Module) -> Iterator[_Slot]:
    for prefix, module in model.named_modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                yield _Slot(module, key, f"{prefix}.{key}" if prefix else key)


def _read_parts(folder: Path, dtype: "Dtype") -> PreTrainedModel:
    """The model in `folder` with this process's parts of its weights. On a CPU, they may still lie in the files."""
    with named_errors(folder), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config)
    blocks = [name for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)]
    units = {re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in blocks} or {model.base_model_prefix}
    plan = dict.fromkeys(sorted(units), "free_full_weight")
    return read_model(
        folder, dtype, distributed_config=DistributedConfig(fsdp_size=process().num_processes, fsdp_plan=plan)
    )


def _placeholders(parts: PreTrainedModel) -> PreTrainedModel:
    """The undivided model, in eval mode: each weight is one zero, seen in the weight's shape. Buffers are those of `parts`.

    So peft finds shapes, types and a device.
    """
    config = copy.deepcopy(parts.config)
    del config.distributed_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = parts.generation_config
    dtypes = {name: weight.dtype for name, weight in parts.named_parameters(remove_duplicate=False)}
    device = process().device
    _replace(
        _slots(model),
        lambda old, name: torch.zeros((), dtype=dtypes[name], device=device).expand(old.shape),
    )
    for name, buffer in parts.named_buffers():
        module, _, key = name.rpartition(".")
        model.get_submodule(module)._buffers[key] = buffer
    return model


def _forget(slots: Sequence[_Slot]) -> None:
    """Replace the placeholders by weights without data, which `sharding.shard` can divide."""
    _replace(slots, lambda old, name: torch.empty_like(old, device="meta", memory_format=torch.contiguous_format))


def _taken(parts: PreTrainedModel) -> dict[str, torch.Tensor]:
    """This process's parts of the weights by name, taken out of the model."""
    values = {name: sharding.local(p.detach()) for name, p in parts.named_parameters(remove_duplicate=False)}
    for module in parts.modules():
        module._parameters.clear()
    return values


def _fill(slots: Sequence[_Slot], values: dict[str, torch.Tensor]) -> None:
    """Give the divided weights their values, which are taken out one by one: two copies of all would take twice the memory."""
    _replace(slots, lambda old, name: sharding.with_part(old, values.pop(name)))


def _replace(slots: Iterator[_Slot] | Sequence[_Slot], new: Callable[[torch.Tensor, str], torch.Tensor]) -> None:
    """Put new weights into the slots, given the old ones and their names. Tied weights stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module, key, name in slots:
        old: Any = module._parameters[key]
        if old not in made:
            made[old] = nn.Parameter(new(old, name), old.requires_grad)
        module._parameters[key] = made[old]


@torch.no_grad()
def set_magnitudes(policy: Policy) -> None:
    """Start DoRA from the norms of the weights (arXiv:2402.09353, eq. 5), which it could not see when it was added."""
    for layer in lora_layers(policy).values():
        if layer.lora_magnitude_vector:
            weight = layer.get_base_layer().weight
            norms = torch.linalg.vector_norm(weight, dim=0 if layer.fan_in_fan_out else 1)
            sharding.put(layer.lora_magnitude_vector["default"].weight, sharding.whole(norms))
