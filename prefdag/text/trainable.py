"""Language models for training: adding an adapter, frozen copies of a policy, and saving the trained weights."""

import copy
import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model, get_peft_model_state_dict
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL_TARGETS
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D
from transformers.utils import CHAT_TEMPLATE_DIR

from prefdag.config.adapter import Adapter, Full, Lora, Prefix
from prefdag.distributed import sharding
from prefdag.distributed.process import process
from prefdag.lifecycle.errors import ParamsError
from prefdag.runtime.artifacts import write_json
from prefdag.text.model import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    DTYPES,
    Policy,
    Unadapted,
    adapted_model,
    load,
    lora_layers,
)
from prefdag.text.scoring.layers import speed_up, speed_up_adapters
from prefdag.text.sharded import load_sharded, set_magnitudes

if TYPE_CHECKING:
    from prefdag.config.dpo_text import DpoText
    from prefdag.config.sft_ref import SftRef
    from prefdag.runtime.types import Dtype


def load_for_training(folder: Path, adapter: Adapter, key: str, dtype: "Dtype" = "float32") -> PreTrainedModel:
    """Load the model in `folder` to train `adapter` on: with 4-bit linear layers for qlora.

    Args:
        key: the key of `adapter` in params.yaml, for error messages.
        dtype: of the weights; of those that are not in 4 bits, float32 is the only one.

    Raises:
        ParamsError: qlora without a CUDA device, without bitsandbytes, or for a model with transposed weights (GPT-2).
    """
    if adapter.kind != "qlora":
        return load(folder, dtype)
    kind = f"params.yaml: {key}.kind"
    if process().device.type != "cuda":
        raise ParamsError(f"{kind}: qlora needs a CUDA device, and none was found; set it to lora")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ParamsError(f"{kind}: qlora needs bitsandbytes; run `make qlora` to install it, or set it to lora")
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        modules = AutoModelForCausalLM.from_config(config).modules()
    # Dequantized Conv1D weights would be transposed, and the merged model would differ from the trained one.
    if any(isinstance(module, Conv1D) for module in modules):
        raise ParamsError(f"{kind}: qlora does not support {config.model_type} models; set it to lora")
    # These layers compute in float32, or in `training.precision`, since autocast applies to them.
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return load(folder, quantization_config=nf4, device_map={"": process().device})


def new_policy(folder: Path, config: "SftRef | DpoText", seed: int, key: str) -> Policy:
    """The model in `folder` with a new adapter, or to be trained as a whole; divided over the processes if `config` says so.

    Args:
        key: the key of the adapter in params.yaml, for error messages.

    Raises:
        ParamsError: as `load_for_training` and `add_adapter`.
    """

    def adapted(model: PreTrainedModel) -> Policy:
        return add_adapter(model, config.adapter, seed, key)

    if config.shard == "full":
        policy = load_sharded(folder, config.load_dtype, adapted)
        if sharding.is_sharded(policy):
            set_magnitudes(policy)
    else:
        policy = adapted(load_for_training(folder, config.adapter, key, config.load_dtype))
    if config.gradient_checkpointing:
        checkpoint_gradients(policy)
    return policy


def add_adapter(model: PreTrainedModel, config: Adapter, seed: int, key: str) -> Policy:
    """Turn `model` into a policy, in eval mode. Only the parameters that `config` trains require gradients.

    With LoRA (B = 0) and full fine-tuning, the policy starts out equal to `model`. With a prefix, drawn from N(0, 1), it
    does not.

    Args:
        key: the key of `config` in params.yaml, for error messages.

    Raises:
        ParamsError: the model does not have the target modules.
    """
    torch.manual_seed(seed)
    match config:
        case Full():
            return model.requires_grad_(True)
        case Prefix():
            prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=config.tokens)
            return get_peft_model(model, prefix).eval()
        case Lora():
            policy = get_peft_model(
                model,
                LoraConfig(
                    r=config.rank,
                    lora_alpha=config.alpha,
                    lora_dropout=config.dropout,
                    target_modules=_targets(model, config, key),
                    use_rslora=config.rslora,
                    use_dora=config.dora,
                    task_type="CAUSAL_LM",
                ),
            ).eval()
            # Only the adapters' dropout is on. The base model's own stays off, as in the reference.
            layers = lora_layers(policy).values()
            for layer in layers:
                layer.train(config.dropout > 0)
            speed_up_adapters(layers)
            return policy


def checkpoint_gradients(policy: Policy) -> None:
    """Recompute activations in the backward pass instead of keeping them (arXiv:1604.06174). Gradients stay the same."""
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in policy.modules():
        if isinstance(module, GradientCheckpointingLayer):
            # The layer checkpoints only if its own flag is set. The modules inside it stay in eval mode.
            module.training = True


def _targets(model: PreTrainedModel, config: Lora, key: str) -> list[str] | str:
    """The modules to adapt, as peft expects them: last parts of their names, a regular expression, or all-linear."""
    if config.target_modules == "all-linear":
        return config.target_modules
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    }
    where, choose = f"params.yaml: {key}.target_modules", f"choose from {sorted(linear)}"
    if config.target_modules == "auto":
        kind = model.config.model_type
        if kind not in USUAL_TARGETS:
            raise ParamsError(f"{where}: auto does not know {kind} models; set it to all-linear, or {choose}")
        usual = USUAL_TARGETS[kind]
        return usual if isinstance(usual, str) else list(usual)
    for target in config.target_modules:
        if target not in linear:
            raise ParamsError(f"{where}: this model has no module '{target}'; {choose}")
    return config.target_modules


def frozen_copy(policy: Policy) -> nn.Module:
    """A copy of `policy` that stays as it is when the policy is trained further: in eval mode, without gradients.

    LoRA is merged into the layers it adapts. The copy shares the frozen tensors with the policy, so that it takes only the
    memory of `effective_tensors`. Of a sharded policy it is the model that the policy starts from, loaded again and sharded:
    valid only before training.
    """
    if sharding.is_sharded(policy):
        base: Any = adapted_model(policy)
        return load_sharded(Path(base.name_or_path)).requires_grad_(False)  # in float32, as the policy
    layers = lora_layers(policy)
    memo: dict[int, Any] = {id(t): t for t in (*policy.parameters(), *policy.buffers()) if not t.requires_grad}
    memo |= {id(layer): _merged(layer) for layer in layers.values()}
    frozen = copy.deepcopy(adapted_model(policy), memo).requires_grad_(False).eval()
    speed_up(frozen)
    return frozen


@torch.no_grad()
def effective_tensors(policy: Policy) -> dict[str, Tensor]:
    """The trained tensors of `policy`, by their names in `frozen_copy`. Parameters are returned as they are, not copied.

    LoRA: the merged weights of the adapted layers. Prefix: the prompt embedding. Full: every parameter.
    """
    layers = lora_layers(policy)
    if layers:
        return {f"{name}.weight": merged_weight(layer) for name, layer in layers.items()}
    return {name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}


@torch.no_grad()
def merged_weight(layer: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The single weight that replaces a `LoraLayer`'s base weight and adapter, in the shape of the base weight.

    LoRA: V = W + s B A, where s is alpha / rank, or alpha / sqrt(rank) with rsLoRA (arXiv:2312.03732). DoRA: m V / ||V||, with
    the norm over the layer's inputs (arXiv:2402.09353, eq. 5). W is not changed.

    Args:
        dtype: None: that of the base weight.
    """
    base = dequantize_module_weight(layer.get_base_layer())
    weight = base + layer.get_delta_weight("default")
    if layer.lora_magnitude_vector:
        inputs = 0 if layer.fan_in_fan_out else 1
        magnitude = layer.lora_magnitude_vector["default"].weight.unsqueeze(inputs)
        weight = magnitude * weight / torch.linalg.vector_norm(weight, dim=inputs, keepdim=True)
    return weight.to(dtype or base.dtype)


def _merged(layer: Any) -> nn.Module:
    """A plain Linear or Conv1D layer that replaces a `LoraLayer`, also one in 4 bits."""
    base, weight = layer.get_base_layer(), nn.Parameter(merged_weight(layer))
    with torch.device("meta"):  # allocates no weights, which are replaced below
        make: Any = Conv1D if isinstance(base, Conv1D) else nn.Linear
        plain = make(*reversed(weight.shape))
    plain.weight, plain.bias = weight, base.bias
    return plain


def before_training(policy: Policy) -> nn.Module:
    """The model that `policy` starts from. Under full fine-tuning this is the policy itself: valid only before training."""
    return Unadapted(policy) if isinstance(policy, PeftModel) else policy


def untrained(policy: Policy) -> nn.Module:
    """The model that `policy` starts from, valid also during training: its adapter off or, under full fine-tuning, a copy."""
    return Unadapted(policy) if isinstance(policy, PeftModel) else frozen_copy(policy)


def save_merged(policy: Policy, folder: Path, dtype: "Dtype" = "float32") -> None:
    """Write the policy as a model folder that loads without peft: with LoRA merged and 4-bit weights dequantized.

    All processes must call it if the policy is sharded; the first one writes.

    Args:
        dtype: of the weights. LoRA is merged in float32 first.
    """
    model: Any = adapted_model(policy)
    quantized = getattr(model, "is_quantized", False)
    if not quantized and (sharding.is_sharded(policy) or (dtype, model.dtype) != ("float32", torch.float32)):
        _save_whole(policy, folder, dtype)
        return
    merged: Any = frozen_copy(policy) if isinstance(policy, PeftModel) else policy
    if quantized:
        merged = merged.dequantize()
    if dtype == "float32":
        merged.save_pretrained(folder)
    else:
        _write(merged, {name: p.detach().to(DTYPES[dtype]) for name, p in merged.named_parameters()}, folder, dtype)


def save_policy(policy: Policy, folder: Path, reference: Path) -> None:
    """Write the trained weights: the adapter, for peft to load on top of the model in `reference`, or the whole model.

    The same policy gives the same bytes every time. A whole model includes the tokenizer and loads on its own. All processes
    must call it if the policy is sharded; the first one writes.
    """
    if not isinstance(policy, PeftModel):
        if sharding.is_sharded(policy):
            _save_whole(policy, folder, "float32")
        else:
            policy.save_pretrained(folder)
        copy_tokenizer(reference, folder)
        return
    tensors = get_peft_model_state_dict(policy)
    if sharding.is_sharded(policy):
        tensors = sharding.whole_on_first(tensors)
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = policy.active_peft_config.to_dict() | {"base_model_name_or_path": str(reference), "inference_mode": True}
    # peft keeps target modules in a set, whose order varies between processes.
    write_json(folder / ADAPTER_CONFIG, {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()})


def _save_whole(policy: Policy, folder: Path, dtype: "Dtype") -> None:
    """Gather a policy, with LoRA merged, and write it as a model folder from the first process."""
    layers = lora_layers(policy)
    model: Any = adapted_model(policy)
    inside = tuple(f"{name}." for name in layers)
    tensors = {name: p for name, p in model.named_parameters() if not name.startswith(inside)}  # tied ones once
    tensors |= {f"{name}.weight": merged_weight(layer, DTYPES[dtype]) for name, layer in layers.items()}
    biases = {f"{name}.bias": layer.get_base_layer().bias for name, layer in layers.items()}
    tensors |= {name: bias for name, bias in biases.items() if bias is not None}
    weights = sharding.whole_on_first(tensors, DTYPES[dtype])
    if process().is_main_process:
        _write(model, weights, folder, dtype)


def _write(model: Any, weights: Mapping[str, Tensor], folder: Path, dtype: "Dtype") -> None:
    """Write a model folder with the architecture of `model` and these weights."""
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config, dtype=DTYPES[dtype])
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder, state_dict=dict(weights))


def copy_tokenizer(base: Path, folder: Path) -> None:
    """Copy tokenizer and chat templates, byte for byte, from one model folder into another."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)
    if (base / CHAT_TEMPLATE_DIR).exists():
        shutil.copytree(base / CHAT_TEMPLATE_DIR, folder / CHAT_TEMPLATE_DIR, dirs_exist_ok=True)
