"""The trial of a model when it is loaded: whether packed rows, and skipping its output layer, give the right numbers.

First, one short row shows what the model asks of its attention: options that packed rows do not have, and the rule of its
masks, which is followed over any distance. Then log-probabilities of packed rows are compared with those of the plain
model on padded rows. So that a difference shows, whatever the weights:

- the attention's scaling is raised until the scores reach `SCORES`, where a soft cap or a wrong mask is felt;
- the longest row crosses the sliding window, unless that is longer than `LONGEST`;
- the tolerance shrinks with the influence of the context in this model, to the rounding errors of the plain model itself;
- the logits are enlarged to `LOGITS` to see whether anything follows the output layer.
"""

import functools
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prefdag.text.scoring.attention import NAME as PACKED
from prefdag.text.scoring.attention import PackedMask, UnsupportedOptionError
from prefdag.text.scoring.packing import Group, Pack, Segment, pack
from prefdag.text.scoring.states import ForwardMode, response_token_logps
from prefdag.text.scoring.vocabulary import token_logps

# Nats per token that packed rows may be off in float32, for rounding errors: at most, at least, as a share of the influence
# of the context (a mix-up is off by about all of that influence), and in multiples of what the plain model is off by when the
# same rows are computed one by one. On an H200, that alone was more than the share, for 24 layers with random weights.
MOST, LEAST, SHARE, ROUNDING = 1e-3, 5e-6, 3e-4, 4.0
# In bfloat16, some rounding errors are as large as what a mix-up does (nats, in long rows of rare tokens). There, the
# first part of the trial has to tell, and the rows only guard against what is off by far more.
LOW_PRECISION = 0.3
SHORT = [Group([5, 3, 8], ([2, 9], [7, 1, 4, 6])), Group([6], ([3, 5],))]
SCORES = 20.0
LOGITS = 1000.0
SHORTEST, LONGEST = 32, 256  # tokens of the longest row, with its prompt

logger = logging.getLogger(__name__)


@torch.no_grad()
def set_forward_mode(model: Any, *, packed: bool = True) -> None:
    """Find the fastest right way to call `model`, and store it in `model.prefdag_forward_mode`.

    The model keeps the attention implementation that it was loaded with unless packed rows are asked for and work. If
    they do not work, a warning says why.
    """
    original = model.config._attn_implementation
    observer, problem = _observe(model, original) if packed else (_Observer(), None)
    short = not packed or _low_precision(model)
    groups = SHORT if short else _groups(_longest_row(model, observer.windows))
    trial = pack(groups).to(next(model.parameters()).device)
    with observer.sharpened():
        expected, headless = _plain_logps(model, trial)
        if packed and not problem:
            rounding = _rounding(model, trial, expected)
            model.prefdag_forward_mode = ForwardMode(packed=True, headless=headless)
            model.set_attn_implementation(PACKED)
            problem = _problem(model, trial, expected, rounding)
    if packed and problem:
        model.set_attn_implementation(original)
        _warn_once(
            f"{model.config.model_type} models do not support packed rows ({problem}); "
            "using one padded row per response, which is slower"
        )
    model.prefdag_forward_mode = ForwardMode(packed=packed and not problem, headless=headless)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


class _Observer:
    """Checks what each attention layer is asked for, and finds the factor that its scaling needs."""

    def __init__(self) -> None:
        self.factors: dict[Any, float] = {}
        self.windows: set[int] = set()
        self._checked: list[PackedMask] = []

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        scaling: float | None,
        mask: PackedMask | None,
        window: int | None,
    ) -> float | None:
        if mask is None and window is not None:  # transformers' own attention then sees everything
            raise UnsupportedOptionError(module, "sliding_window", f"{window}, without a mask")
        if mask is not None and not any(mask is other for other in self._checked):
            if not is_causal(mask, query.device):
                raise UnsupportedOptionError(module, "attention_mask", "neither causal nor a causal sliding window")
            self._checked.append(mask)
        self.windows |= set() if window is None else {window}
        self.factors[module] = 1.0
        # In bfloat16, rounding errors of large scores are large.
        if scaling and query.dtype == torch.float32 and getattr(module, "scaling", None) == scaling:
            scores = query.unflatten(1, (key.shape[1], -1)) @ key.unsqueeze(2).mT * scaling
            self.factors[module] = max(1.0, SCORES / max(float(scores.abs().max()), 1e-9))
            scaling *= self.factors[module]
        return scaling

    @contextmanager
    def sharpened(self) -> Iterator[None]:
        """In this context, the layers have the scaling that raises their scores to `SCORES`."""
        original: dict[Any, float] = {
            module: module.scaling for module, factor in self.factors.items() if factor != 1.0
        }
        for module, scaling in original.items():
            module.scaling = scaling * self.factors[module]
        try:
            yield
        finally:
            for module, scaling in original.items():
                module.scaling = scaling


def is_causal(mask: PackedMask, device: torch.device) -> bool:
    """Whether each token sees itself and those before it within the mask's window, and nothing else.

    Asked of tokens around multiples of the window and powers of two, up to a million apart.
    """
    far = {multiple * (mask.window or 1) for multiple in range(1, 4)} | {2**i for i in range(21)}
    places = torch.tensor(sorted({0} | {place + i for place in far for i in (-1, 0, 1)}), device=device)
    q, k = places[:, None], places[None]
    expected = k <= q if mask.window is None else (k <= q) & (q - k < mask.window)
    zero = torch.zeros(1, 1, dtype=torch.int64, device=device)
    return torch.equal(mask.rule(zero, zero, q, k).expand_as(expected), expected)


def _observe(model: Any, original: str) -> tuple[_Observer, str | None]:
    """A forward pass of a few tokens with our attention: what it showed, and why packed rows cannot work, if so."""
    observer = _Observer()
    ids = torch.tensor([_tokens(8)], device=next(model.parameters()).device)
    problem = None
    try:
        model.set_attn_implementation(PACKED)
        model(input_ids=ids, segments=(Segment(0, ids.shape[1], ()),), observer=observer, use_cache=False)
        if not observer.factors:
            problem = "they do not use transformers' attention interface"
    except Exception as error:  # whatever a model raises for arguments or masks that it does not know
        problem = _reason(error)
    model.set_attn_implementation(original)
    return observer, problem


def _problem(model: Any, trial: Pack, expected: Tensor, rounding: float) -> str | None:
    """Why the mode that is set gives other log-probabilities than `expected`; None if it gives the same."""
    try:
        off = float((response_token_logps(model, trial) - expected).abs().max())
    except Exception as error:  # as in `_observe`
        return _reason(error)
    if off <= _tolerance(model, trial, expected, rounding):
        return None
    return f"log-probabilities differ by up to {off:.2g} nats per token"


def _tolerance(model: Any, trial: Pack, expected: Tensor, rounding: float) -> float:
    """Nats per token, given the log-probabilities of a trial in which responses 0 and 2 are the same after other prompts."""
    if _low_precision(model):
        return LOW_PRECISION
    influence = float((expected[trial.owners == 0] - expected[trial.owners == 2]).abs().max())
    return min(MOST, max(LEAST, SHARE * influence, ROUNDING * rounding))


def _rounding(model: Any, trial: Pack, expected: Tensor) -> float:
    """What the plain model is off by, in nats per token, when the rows of `expected` are computed one by one."""
    if _low_precision(model):
        return 0.0
    input_ids, attention_mask, rows, columns = trial.padded()
    off = 0.0
    for row, length in enumerate(attention_mask.sum(1).tolist()):
        of_row = rows == row
        logits = model(input_ids=input_ids[row : row + 1, :length], use_cache=False).logits[0, columns[of_row]]
        alone = token_logps(logits, None, trial.targets[of_row])
        off = max(off, float((alone - expected[of_row]).abs().max()))
    return off


def _low_precision(model: Any) -> bool:
    return model.dtype not in (torch.float32, torch.float64)


def _reason(error: Exception) -> str:
    if isinstance(error, UnsupportedOptionError):
        return error.option
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _plain_logps(model: Any, trial: Pack) -> tuple[Tensor, bool]:
    """Log-probabilities of the plain model on padded rows, (S,), and whether its output layer alone makes the logits.

    A constant factor after that layer (Cohere) may also be: it is then a factor on the states.
    """
    input_ids, attention_mask, rows, columns = trial.padded()
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def enlarge(layer: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        large = logits * (LOGITS / logits.abs().max().clamp(min=1e-9))
        calls.append((inputs[0], logits, large.clone()))
        return large

    def plain() -> Tensor:
        return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    layer = model.get_output_embeddings()
    with nullcontext() if layer is None else layer.register_forward_hook(enlarge):
        returned = plain()
    if not calls:
        return token_logps(returned[rows, columns], None, trial.targets), False
    states, logits, large = calls[0]
    factor = _factor(large, returned) if len(calls) == 1 and returned.shape == large.shape else None
    if factor is None or (factor != 1.0 and getattr(layer, "bias", None) is not None):
        return token_logps(plain()[rows, columns], None, trial.targets), False
    expected = token_logps(factor * logits[rows, columns], None, trial.targets)
    off = (token_logps(factor * states[rows, columns], layer, trial.targets) - expected).abs().max()
    return expected, bool(off <= (LOW_PRECISION if _low_precision(model) else MOST))


def _factor(before: Tensor, after: Tensor) -> float | None:
    """The constant c with after = c before; None if there is none."""
    after = after.to(before.dtype)
    if torch.equal(after, before):
        return 1.0
    largest = before.abs().argmax()
    factor = float(after.flatten()[largest] / before.flatten()[largest])
    precision = 4 * torch.finfo(before.dtype).eps
    return factor if torch.allclose(after, factor * before, rtol=precision, atol=precision) else None


def _longest_row(model: Any, windows: set[int]) -> int:
    """Tokens of the longest row of the trial."""
    crossing = [window + 16 for window in windows if window + 16 <= LONGEST]
    positions = getattr(model.config, "max_position_embeddings", None) or LONGEST
    return min(max([SHORTEST, *crossing]), positions if positions > 0 else LONGEST)


def _groups(longest: int) -> list[Group]:
    """A long and a short prompt with the same last token. Both have the same response; the long one has another too."""
    tokens = _tokens(longest)
    other = tokens[-min(8, longest // 2) :]
    prompt = tokens[: longest - len(other)]
    short = tokens[::-1][: min(3, len(prompt) - 1)]
    return [Group(prompt, (other[:3], other)), Group([*short, prompt[-1]], (other[:3],))]


def _tokens(n: int) -> list[int]:
    """Random tokens with small ids, which every vocabulary has."""
    return random.Random(0).choices(range(1, 10), k=n)
