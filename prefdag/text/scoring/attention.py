"""Attention for packed rows: a token attends to its prompt and to earlier tokens of its own response, and to nothing else.

Registered with transformers as an attention implementation, so that any decoder that accepts one (Llama, GPT-2, Qwen, ...)
runs packed rows unchanged. All tokens attend to a trained prefix (prefix tuning). No mask of the whole row is ever built:
FlexAttention computes it on a GPU (`flex.py`), torch's kernels elsewhere (`chunked.py`).

A model hands options to its attention as keywords. Soft-capped scores, attention sinks and sliding windows are supported.
An option that is not known here and is not off raises `UnsupportedOptionError`: it would change the numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from prefdag.lifecycle.errors import PrefdagError
from prefdag.text.scoring.chunked import chunked_attention
from prefdag.text.scoring.flex import flex_for, flex_packed_attention

if TYPE_CHECKING:
    from prefdag.text.scoring.packing import Segment

NAME = "prefdag_packed"

# Keywords that reach the attention of some models and do not change it: what the model has already applied, or returns.
NEUTRAL = {"position_ids", "use_cache", "logits_to_keep", "output_router_logits", "deterministic"}


class UnsupportedOptionError(PrefdagError):
    """A model gives its attention an option, or a value of it, that packed rows do not have."""

    def __init__(self, module: nn.Module, name: str, value: Any) -> None:
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else str(value)
        self.option = f"attention option {name} of {type(module).__name__}: {shown}"
        super().__init__(f"packed rows do not support {self.option}")


class Observer(Protocol):
    """Sees each call of a forward pass, and returns the scaling to use: see `trial.py`."""

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        scaling: float | None,
        mask: "PackedMask | None",
        window: int | None,
    ) -> float | None: ...


@dataclass(frozen=True, eq=False)
class PackedMask:
    """What transformers' mask functions ask for, in the place of a mask.

    Attributes:
        rule: whether a query sees a key: (batch, head, query, key), all int64 indices, to bool.
        window: the last keys that a query sees, itself included; None: all before it.
    """

    rule: Callable[[Tensor, Tensor, Tensor, Tensor], Any]
    window: int | None


def packed_mask(
    *, mask_function: Callable[..., Any] = causal_mask_function, local_size: int | None = None, **kwargs: Any
) -> PackedMask:
    """The mask function that transformers calls."""
    return PackedMask(mask_function, local_size)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: PackedMask | None,
    *,
    segments: tuple["Segment", ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls, with grouped-query attention (arXiv:2305.13245).

    Args:
        query: (1, heads, T, d).
        key, value: (1, kv_heads, P + T, d). The first P belong to a trained prefix, which every token attends to; without
            one, P is 0.
        attention_mask: its window is the one that counts, as in transformers' own attention.
        softcap: scores s become c tanh(s / c).
        s_aux: (heads,), attention sinks.
        is_causal: False is not supported; None: the module's.
        options: anything else. Each must be off (None or False) or in `NEUTRAL`.

    Returns:
        (1, T, heads, d), in the dtype of the query, and no attention weights.

    Raises:
        UnsupportedOptionError: an option or a mask that packed rows do not have.
    """
    refuse_unsupported(module, {**options, "attention_mask": attention_mask, "is_causal": is_causal})
    window = sliding_window if attention_mask is None else attention_mask.window
    if observer:
        scaling = observer(module, query, key, scaling, attention_mask, window)
    on_gpu = query.device.type == "cuda" and not dropout
    if on_gpu and (flex := flex_for(query, key, value, window, softcap, s_aux)):
        return flex_packed_attention(flex, query, key, value, segments, scaling, window, softcap, s_aux), None
    return chunked_attention(query, key, value, segments, scaling, dropout, window, softcap, s_aux), None


def refuse_unsupported(module: nn.Module, options: Mapping[str, Any]) -> None:
    """Raise `UnsupportedOptionError` for the first of `options` that is neither off nor known to be without effect."""
    for name, value in options.items():
        match name:
            case "attention_mask":  # any other mask is one that the model built by itself
                supported = value is None or isinstance(value, PackedMask)
            case "is_causal":
                value = getattr(module, "is_causal", True) if value is None else value
                supported = value is not False
            case _:
                supported = value is None or value is False or name in NEUTRAL
        if not supported:
            raise UnsupportedOptionError(module, name, value)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, packed_mask)
