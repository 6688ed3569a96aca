"""The hidden states that predict the scored tokens of a pack, whatever the model: packed where it can, padded where not.

Packed, a prompt is computed once for all its responses, in one row with other groups, without padding. That needs a model
which takes positions and lets its attention be chosen. Others (state-space models, say) get a row a response, padded to the
longest: the same numbers, more slowly. `find_route` tries out which it is, when a model is loaded.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefdag.text.scoring.attention import NAME as PACKED
from prefdag.text.scoring.packing import Group, Pack, pack
from prefdag.text.scoring.vocabulary import token_logps

# Short groups that differ in all that a wrong mask, position or order would mix up.
TRIAL = [Group([5, 3, 8], ([2, 9], [7, 1, 4, 6])), Group([6], ([3, 5],))]
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3}  # nats a token, in a trial; what is mixed up is off by far more

logger = logging.getLogger(__name__)


class Route(NamedTuple):
    """How a model is to be called."""

    packed: bool  # one row for all groups; else a padded row a response
    headless: bool  # its logits are those of its output layer, which can be left out; else it does more to them


def route(model: nn.Module) -> Route:
    """What `find_route` found, also of a policy around the model or a copy of it."""
    return _inner(model).prefdag_route


def head(model: nn.Module) -> nn.Linear | None:
    """The output layer that `response_states` left out, None where it did not."""
    return _inner(model).get_output_embeddings() if route(model).headless else None


def response_states(model: nn.Module, packed: Pack) -> Tensor:
    """The states that predict each scored token, (S, d), for `vocabulary.token_logps`; of some models the logits."""
    with _without(head(model)):
        if route(model).packed:
            return model(
                input_ids=packed.input_ids[None],
                position_ids=packed.position_ids[None],
                logits_to_keep=packed.predictors,
                segments=packed.segments,
                use_cache=False,
            ).logits[0]
        input_ids, attention_mask, rows, columns = packed.padded()
        return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[rows, columns]


def response_token_logps(model: nn.Module, packed: Pack) -> Tensor:
    """log pi(target | prompt, response so far) of each scored token: (S,), float32, in nats."""
    return token_logps(response_states(model, packed), head(model), packed.targets)


@torch.no_grad()
def find_route(model: Any, *, packed: bool = True) -> None:
    """Try out on a few tokens how `model` can be called, and note it there as `prefdag_route`; a slow route is logged.

    The measure is the model itself over padded rows, with the attention that it was loaded with, which stays where packed
    rows are not asked for or cannot be.
    """
    trial = pack(TRIAL).to(next(model.parameters()).device)
    own = model.config._attn_implementation

    def logps(route: Route) -> Tensor:
        model.prefdag_route = route
        return response_token_logps(model, trial)

    def agrees(route: Route) -> bool:
        try:
            return bool((logps(route) - expected).abs().max() <= TOLERANCE.get(model.dtype, 1e-3))
        except (TypeError, ValueError, AttributeError) as error:  # an argument that it does not take
            logger.debug("%s: %r", route, error)
            return False

    expected = logps(Route(packed=False, headless=False))
    found = Route(packed=False, headless=agrees(Route(packed=False, headless=True)))
    if packed:
        model.set_attn_implementation(PACKED)
        if agrees(found._replace(packed=True)):
            found = found._replace(packed=True)
        else:
            model.set_attn_implementation(own)
            logger.warning(
                "%s models do not take packed rows: a padded row a response, more slowly", model.config.model_type
            )
    model.prefdag_route = found


def _inner(model: nn.Module) -> Any:
    """Inside what training wraps around a model (distributed), or a policy around its adapters."""
    while isinstance(inner := getattr(model, "module", getattr(model, "policy", None)), nn.Module):
        model = inner
    return model


@contextmanager
def _without(layer: nn.Module | None) -> Iterator[None]:
    """Within, `layer` hands on what it is given."""
    if layer is None:
        yield
        return
    layer.forward = lambda states: states
    try:
        yield
    finally:
        del layer.forward
