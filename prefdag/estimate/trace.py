"""The memory of a forward and backward pass, from the trainer's own code run on tensors that have shapes but no data.

Torch's fake tensors go through every operation and allocate nothing, so a model of any size takes a few seconds. What is
counted is what is alive at once: kept activations, temporary tensors, gradients. Memory inside a kernel is not seen.
"""

import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from prefdag.text import trainable
from prefdag.text.model import DTYPES, Policy, lora_layers
from prefdag.text.scoring.attention import packed_mask
from prefdag.text.scoring.layers import speed_up, speed_up_adapters, speed_up_rotary
from prefdag.text.scoring.logps import response_logps
from prefdag.text.scoring.packing import Group, pack
from prefdag.text.scoring.states import ForwardMode
from prefdag.train.optimizer import make_optimizer

if TYPE_CHECKING:
    from prefdag.config.adapter import Adapter
    from prefdag.config.training import Training
    from prefdag.runtime.types import Dtype

ATTENTION = "prefdag_estimate"
# What the count does not see, from measurements (benchmarks/bench_estimate.py): freed blocks that nothing else fits into, a
# share of all; and what libraries and kernels take for themselves, bytes.
ALLOCATOR, KERNELS = 1.03, 95e6
# Bytes of a 4-bit weight: half a byte, a byte of scale for 64 of them, and four for 256 of those.
NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)
ReferenceKind = Literal["none", "live", "moving"]


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Keeps what packed attention keeps: queries, keys, values, the output, and a sum per query. No masks of any size."""
    per_token = query.shape[1] // key.shape[1]
    queries = query.unflatten(1, (key.shape[1], per_token)).transpose(2, 3).flatten(2, 3)
    out = F.scaled_dot_product_attention(queries, key, value, scale=scaling)
    return out.unflatten(2, (-1, per_token)).permute(0, 2, 1, 3, 4).flatten(2, 3), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, packed_mask)


class Peak(TorchDispatchMode):
    """Counts the bytes of tensors made in this context: `now` those that are alive, `most` the largest sum so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in known | self._seen:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), id(storage)
        self._seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key, size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class _Agrees(TorchDispatchMode):
    """`speed_up` compares numbers, which fake tensors lack: every comparison holds."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True
        return func(*args, **(kwargs or {}))


class Trace(NamedTuple):
    """What a model and some passes over a micro-batch take, in bytes unless said otherwise."""

    parameters: int  # numbers, adapters included
    trained: int  # numbers that have gradients
    weights: int
    largest_unit: int  # of the blocks, and what is outside of them: what is whole at once when a model is sharded
    reference: int  # a copy that is not the policy
    optimizer: int
    gradients: int
    working: int  # beyond all of these, at the peak: activations, temporary tensors, logits


def peak(trace: Trace, shards: int = 1) -> int:
    """The most bytes of one process, with what the allocator cannot reuse.

    Args:
        shards: processes over which weights, gradients, optimiser and reference are divided. The largest unit is then gathered.
    """
    held = trace.weights + trace.gradients + trace.optimizer + trace.reference
    gathered = trace.largest_unit if shards > 1 else 0
    return round(ALLOCATOR * (held / shards + gathered + trace.working) + KERNELS)


def checkpoint(trace: Trace) -> int:
    """The bytes of a checkpoint's tensors: what changes in training, copied to the host and then written to disk."""
    return trace.gradients + trace.optimizer


def trace_training(
    config: PretrainedConfig,
    adapter: "Adapter",
    training: "Training",
    groups: Sequence[Group],
    key: str,
    *,
    checkpointing: bool = False,
    reference: ReferenceKind = "none",
    accumulates: bool = True,
    sharded: bool = False,
    dtype: "Dtype" = "float32",
) -> Trace:
    """A forward and backward pass over one micro-batch, the prompts and responses in `groups`, and the optimiser's update.

    Args:
        key: the key of `adapter` in params.yaml, for error messages.
        reference: live: scored beside the policy; moving: also updated from it.
        accumulates: gradients of other micro-batches are there already.
        sharded: weights are cast to bfloat16 unit by unit. Otherwise autocast keeps what it cast until the forward pass ends.
        dtype: of the weights that are loaded.
    """
    policy = _meta_model(config, dtype)
    with torch.device("meta"):
        policy = trainable.add_adapter(policy, adapter, 0, key)
    with _fake(policy), Peak() as peak:
        if checkpointing:
            trainable.checkpoint_gradients(policy)
        trained = [p for p in policy.parameters() if p.requires_grad]
        gradients = _bytes(trained)
        optimizer = make_optimizer(trained, training)
        for p in trained:
            p.grad = None if p in optimizer.state else torch.zeros_like(p)
        optimizer.step()  # makes the states that are not there yet
        for p in trained:
            p.grad = torch.zeros_like(p)
        states = peak.now - gradients
        if not accumulates:
            optimizer.zero_grad()
        packed = pack(groups)
        with torch.autocast("cpu", torch.bfloat16, training.precision == "bfloat16", cache_enabled=not sharded):
            logps = response_logps(policy, packed)
            if reference != "none":
                with torch.no_grad():  # of the same shapes as the policy
                    response_logps(policy, packed)
        logps.sum().backward()
        if reference == "moving":
            trainable.effective_tensors(policy)
    copied = _copied(policy, reference)
    sizes = _sizes(policy)
    if adapter.kind == "qlora":
        sizes = (*sizes[:2], round(sizes[2] - _saved(policy)), sizes[3])
    return Trace(*sizes, copied, states, gradients, working=peak.most - states - gradients)


def _copied(policy: Policy, reference: ReferenceKind) -> int:
    """The bytes that a reference does not share with the policy: see `trainable.frozen_copy` and `trainable.untrained`."""
    if reference == "none" or (reference == "live" and isinstance(policy, PeftModel)):
        return 0
    layers = lora_layers(policy).values()
    return _bytes(layer.get_base_layer().weight for layer in layers) or _bytes(
        p for p in policy.parameters() if p.requires_grad
    )


def trace_scoring(config: PretrainedConfig, groups: Sequence[Group], dtype: "Dtype") -> Trace:
    """The log-probabilities of one batch of prompts and responses, without gradients."""
    model = _meta_model(config, dtype)
    with _fake(model), Peak() as peak, torch.no_grad():
        response_logps(model, pack(groups))
        return Trace(*_sizes(model), reference=0, optimizer=0, gradients=0, working=peak.most)


def _meta_model(config: PretrainedConfig, dtype: "Dtype") -> Any:
    """The model without data, on torch's meta device. Nothing in it is trained."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).eval().requires_grad_(False)
    for name in {type(module).__module__ for module in model.modules()}:
        speed_up_rotary(sys.modules[name])  # compares real numbers
    model.set_attn_implementation(ATTENTION)
    model.prefdag_forward_mode = ForwardMode(packed=True, headless=True)
    return model


@contextmanager
def _fake(model: Any) -> Iterator[None]:
    """In this context, the tensors of a meta model are fake ones on the CPU, and its layers are those of a real run."""
    with FakeTensorMode():
        replaced: dict[int, Any] = {}
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, old in tensors.items():
                    if old is not None and id(old) not in replaced:  # tied weights stay tied
                        new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                        is_parameter = isinstance(old, nn.Parameter)
                        replaced[id(old)] = nn.Parameter(new, old.requires_grad) if is_parameter else new
                    if old is not None:
                        tensors[name] = replaced[id(old)]
        for name, ids in getattr(model, "prompt_tokens", {}).items():  # of a prefix, in peft
            model.prompt_tokens[name] = torch.empty(ids.shape, dtype=ids.dtype)
        with _Agrees():
            speed_up(model)
        speed_up_adapters(lora_layers(model).values())
        yield


def _sizes(model: nn.Module) -> tuple[int, int, int, int]:
    """The first four of `Trace`."""
    parameters = list(model.parameters())
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    units = [_bytes(block.parameters()) for block in blocks]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    largest = max([*units, _bytes(parameters) - sum(units)])
    return sum(p.numel() for p in parameters), trained, _bytes(parameters), largest


def _saved(policy: Any) -> float:
    """The bytes that 4-bit weights (NF4 with double quantization, arXiv:2305.14314) take less than those in float32.

    All linear layers have them but the head and the adapter.
    """
    head = policy.get_base_model().get_output_embeddings()
    linear = [m.weight for m in policy.modules() if isinstance(m, nn.Linear) and m is not head]
    return sum(w.numel() * (w.element_size() - NF4) for w in linear if not w.requires_grad)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
