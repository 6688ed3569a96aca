"""What is trained of a language model: adapters or every weight, frozen copies of a policy, and saving what was trained."""

import copy
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model, get_peft_model_state_dict
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL_TARGETS
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from prefdag.config.adapter import Adapter, Full, Lora, Prefix
from prefdag.runtime.artifacts import write_json
from prefdag.runtime.errors import ParamsError
from prefdag.runtime.process import process
from prefdag.text.model import ADAPTER_CONFIG, Policy, Unadapted, adapted_model, load, lora_layers
from prefdag.text.scoring.layers import speed_up, speed_up_adapters


def load_for(folder: Path, adapter: Adapter, key: str) -> PreTrainedModel:
    """The model in `folder` as `adapter` is trained on it: linear layers in 4 bits under qlora, float32 otherwise.

    Args:
        key: of `adapter` in params.yaml, for the error.

    Raises:
        ParamsError: qlora without a CUDA device, without bitsandbytes, or of a model without linear layers (GPT-2).
    """
    if adapter.kind != "qlora":
        return load(folder)
    kind = f"params.yaml: {key}.kind"
    if process().device.type != "cuda":
        raise ParamsError(f"{kind}: qlora needs a CUDA device, and there is none; set it to lora")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ParamsError(f"{kind}: qlora needs bitsandbytes; run `make qlora`, or set it to lora")
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        modules = AutoModelForCausalLM.from_config(config).modules()
    # Unpacked from 4 bits, their weights would lie transposed: a merged model that is not the one trained.
    if any(isinstance(module, Conv1D) for module in modules):
        raise ParamsError(f"{kind}: qlora does not take {config.model_type} models; set it to lora")
    # Computed in float32, or as `training.precision` says: autocast reaches into these layers.
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return load(folder, quantization_config=nf4, device_map={"": process().device})


def add_adapter(model: PreTrainedModel, config: Adapter, seed: int, key: str) -> Policy:
    """`model` as a policy, in eval mode: what `config` trains requires a gradient, and nothing else does.

    LoRA starts at the function that `model` is (B = 0), and full training does; a fresh prefix, drawn from N(0, 1), does not.

    Args:
        key: of `config` in params.yaml, for the error.

    Raises:
        ParamsError: target modules that this model does not have.
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
            # The base model's own dropout stays off, as it was for the reference; the adapters' is on if asked for.
            layers = lora_layers(policy).values()
            for layer in layers:
                layer.train(config.dropout > 0)
            speed_up_adapters(layers)
            return policy


def checkpoint_gradients(policy: Policy) -> None:
    """Compute activations once more in the backward pass instead of keeping them (arXiv:1604.06174): the same gradients."""
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in policy.modules():
        if isinstance(module, GradientCheckpointingLayer):
            # A layer's own flag, without which it keeps all; what is inside it stays in eval mode.
            module.training = True


def _targets(model: PreTrainedModel, config: Lora, key: str) -> list[str] | str:
    """The modules to adapt, in a form that peft takes: last names, a regular expression, or all-linear."""
    if config.target_modules == "all-linear":
        return config.target_modules
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    }
    where, choose = f"params.yaml: {key}.target_modules", f"choose among {sorted(linear)}"
    if config.target_modules == "auto":
        kind = model.config.model_type
        if kind not in USUAL_TARGETS:
            raise ParamsError(f"{where}: auto knows no {kind} models; set it to all-linear, or {choose}")
        usual = USUAL_TARGETS[kind]
        return usual if isinstance(usual, str) else list(usual)
    for target in config.target_modules:
        if target not in linear:
            raise ParamsError(f"{where}: this model has no module '{target}'; {choose}")
    return config.target_modules


def frozen_copy(policy: Policy) -> nn.Module:
    """The function that `policy` is at present, as a module that does not follow it: in eval mode, without a gradient.

    LoRA is merged into the layers it adapts. Tensors that are not trained are shared with the policy, so that the copy
    costs the memory of `effective_tensors` alone.
    """
    layers = lora_layers(policy)
    memo: dict[int, Any] = {id(t): t for t in (*policy.parameters(), *policy.buffers()) if not t.requires_grad}
    memo |= {id(layer): _merged(layer) for layer in layers.values()}
    frozen = copy.deepcopy(adapted_model(policy), memo).requires_grad_(False).eval()
    speed_up(frozen)
    return frozen


@torch.no_grad()
def effective_tensors(policy: Policy) -> dict[str, Tensor]:
    """What `policy` has trained, by the names that `frozen_copy` has for it; not copied where a parameter is the thing itself.

    LoRA: the merged weights of the adapted layers. Prefix: the prompt embedding. Full: every parameter.
    """
    layers = lora_layers(policy)
    if layers:
        return {f"{name}.weight": merged_weight(layer) for name, layer in layers.items()}
    return {name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """The one weight that does what a `LoraLayer`, base layer and adapter, does, in the shape and dtype of the base layer's.

    V = W + s B A; s is alpha / rank, or alpha / sqrt(rank), arXiv:2312.03732. DoRA, arXiv:2402.09353, eq. 5: m V / ||V||,
    the norm being taken over a layer's inputs. W is not touched.
    """
    base = dequantize_module_weight(layer.get_base_layer())
    weight = base + layer.get_delta_weight("default")
    if layer.lora_magnitude_vector:
        inputs = 0 if layer.fan_in_fan_out else 1
        magnitude = layer.lora_magnitude_vector["default"].weight.unsqueeze(inputs)
        weight = magnitude * weight / torch.linalg.vector_norm(weight, dim=inputs, keepdim=True)
    return weight.to(base.dtype)


def _merged(layer: Any) -> nn.Module:
    """A plain layer, Linear or Conv1D, in the place of an adapted one, be that in 4 bits."""
    base, weight = layer.get_base_layer(), nn.Parameter(merged_weight(layer))
    with torch.device("meta"):  # the weights of its own are never made
        make: Any = Conv1D if isinstance(base, Conv1D) else nn.Linear
        plain = make(*reversed(weight.shape))
    plain.weight, plain.bias = weight, base.bias
    return plain


def before_training(policy: Policy) -> nn.Module:
    """The model that `policy` was made from, as long as it is not trained: a full one itself, for it starts there."""
    return Unadapted(policy) if isinstance(policy, PeftModel) else policy


def untrained(policy: Policy) -> nn.Module:
    """The model that `policy` was made from: the policy with its adapter off; of a full one a copy, taken at the start."""
    return Unadapted(policy) if isinstance(policy, PeftModel) else frozen_copy(policy)


def save_merged(policy: Policy, folder: Path) -> None:
    """Write the policy as a model folder that loads without peft: LoRA merged, and 4 bits unpacked."""
    merged: Any = frozen_copy(policy) if isinstance(policy, PeftModel) else policy
    if getattr(merged, "is_quantized", False):
        merged = merged.dequantize()
    merged.save_pretrained(folder)


def save_policy(policy: Policy, folder: Path, reference: Path) -> None:
    """Write what was trained: the adapter, as peft loads it on top of the model in `reference`, or the whole model.

    The same policy gives the same bytes every time. A whole model takes the tokenizer along, and loads alone.
    """
    if not isinstance(policy, PeftModel):
        policy.save_pretrained(folder)
        copy_tokenizer(reference, folder)
        return
    save_file(get_peft_model_state_dict(policy), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = policy.active_peft_config.to_dict() | {"base_model_name_or_path": str(reference), "inference_mode": True}
    # peft keeps target modules in a set, whose order differs from process to process.
    write_json(folder / ADAPTER_CONFIG, {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()})


def copy_tokenizer(base: Path, folder: Path) -> None:
    """Copy tokenizer and chat template, byte for byte, from one model folder into another."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)
