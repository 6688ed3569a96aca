"""The hidden states that predict the scored tokens of a pack, from packed rows if the model supports them.

In a packed row, a prompt is computed once for all its responses, next to other groups and without padding. The model must
accept position ids and a choice of attention implementation. Other models (state-space models, for instance) get one row
per response, padded to the longest: the same numbers, more slowly. `trial.py` finds out which when a model is loaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from prefdag.text.scoring.vocabulary import token_logps

if TYPE_CHECKING:
    from prefdag.text.scoring.packing import Pack


class ForwardMode(NamedTuple):
    """How to call a model."""

    packed: bool  # one row for all groups; otherwise one padded row per response
    headless: (
        bool  # the output layer alone makes the logits, so it can be skipped; otherwise the model does more to them
    )


def forward_mode(model: nn.Module) -> ForwardMode:
    """The mode that `trial.set_forward_mode` stored. Also works for a policy around the model, or a copy of it."""
    return _inner(model).prefdag_forward_mode


def head(model: nn.Module) -> nn.Linear | None:
    """The output layer that `response_states` skips; None if it skips none."""
    return _inner(model).get_output_embeddings() if forward_mode(model).headless else None


def response_states(model: nn.Module, packed: "Pack") -> Tensor:
    """The hidden states that predict the scored tokens, (S, d), for `vocabulary.token_logps`; logits if `head` is None."""
    with _skip(head(model)):
        if forward_mode(model).packed:
            return model(
                input_ids=packed.input_ids[None],
                position_ids=packed.position_ids[None],
                logits_to_keep=packed.predictors,
                segments=packed.segments,
                use_cache=False,
            ).logits[0]
        input_ids, attention_mask, rows, columns = packed.padded()
        return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[rows, columns]


def response_token_logps(model: nn.Module, packed: "Pack") -> Tensor:
    """log pi(target | prompt, response so far) of each scored token: (S,), float32, in nats."""
    return token_logps(response_states(model, packed), head(model), packed.targets)


def _inner(model: nn.Module) -> Any:
    """The model inside a wrapper: of distributed training, or `Unadapted`."""
    while isinstance(inner := getattr(model, "module", getattr(model, "policy", None)), nn.Module):
        model = inner
    return model


@contextmanager
def _skip(layer: nn.Module | None) -> Iterator[None]:
    """In this context, `layer` returns its input unchanged."""
    if layer is None:
        yield
        return
    layer.forward = lambda states: states
    try:
        yield
    finally:
        del layer.forward
