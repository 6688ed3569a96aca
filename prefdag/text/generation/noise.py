"""Tokens drawn with temperature and nucleus sampling (top-p, arXiv:1904.09751), on the device of the logits.

A token is drawn by an exponential race: the argmax of p / e, with an exponential variable e for each token, is distributed
as p. It is the Gumbel-max trick (arXiv:1411.0030) without its logarithms. The variables depend on the row's seed, the step
and the token, and on nothing else. So two models with nearly the same probabilities nearly always draw the same token.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, doi:10.1145/2660193.2660195), with its constants as signed numbers.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
SHIFTS = (30, 27, 31)
LIKELIEST = 256  # tokens among which the nucleus is looked for first


def key_of(seed: Sequence[int]) -> int:
    """A seed of any integers as one signed integer of 64 bits."""
    return int.from_bytes(blake2b(repr(list(seed)).encode(), digest_size=8).digest(), "little", signed=True)


def splitmix(key: Tensor, index: Tensor) -> Tensor:
    """The numbers at `index` (from 0) of the SplitMix64 sequence that starts at `key`. Integers wrap around at 64 bits."""
    z = key + (index + 1) * GAMMA
    for shift, factor in zip(SHIFTS, (*FACTORS, 1), strict=True):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return z


def exponentials(keys: Tensor, step: int, tokens: Tensor) -> Tensor:
    """Exponential variables in float32, above 0: those of `tokens` (rows, n) or (n,) in the rows' (rows,) races of a step."""
    race = splitmix(keys, torch.tensor(step, device=keys.device))
    bits = splitmix(race[:, None], tokens)
    # 63 bits, so that small numbers, which let unlikely tokens win, are as exact as large ones.
    uniform = ((bits >> 1) & (2**63 - 1) | 1).to(torch.float32) * 2.0**-63
    return -torch.log1p(-uniform.clamp_max(1 - 2.0**-24))


def draw(logits: Tensor, temperature: float, top_p: float, keys: Tensor, step: int) -> Tensor:
    """One token per row, (rows,), from logits (rows, vocabulary) in float32.

    With top-p, they are drawn from the fewest likeliest tokens whose probabilities sum up to `top_p` or more, and from those
    just as likely as the last of them.

    Args:
        keys: one per row, from `key_of`, as 64-bit integers.
        step: which token of the answer this is.
    """
    probabilities = (logits / temperature).softmax(-1)
    if top_p == 1:
        every = torch.arange(logits.shape[-1], device=logits.device)
        return (probabilities / exponentials(keys, step, every)).argmax(-1)
    kept, tokens = nucleus(probabilities, top_p)
    winner = (kept / exponentials(keys, step, tokens)).argmax(-1, keepdim=True)
    return tokens.gather(-1, winner)[:, 0]


def nucleus(probabilities: Tensor, top_p: float, first: int = LIKELIEST) -> tuple[Tensor, Tensor]:
    """The likeliest tokens (rows, n) and their probabilities, 0 for those outside of the row's nucleus.

    Tokens as likely as the last one of the nucleus belong to it: low precision has many ties, and `topk` breaks them in ways
    that depend on n, which depends on the other rows.
    Sorting the whole vocabulary would take longer than the model. So ever more of the likeliest tokens are looked at, at
    first `first`, until the nucleus of every row ends among them.
    """
    most = probabilities.shape[-1]
    count = min(first, most)
    while True:
        likeliest, tokens = probabilities.topk(count)
        needed = likeliest.cumsum(-1) - likeliest < top_p
        inside = likeliest >= likeliest.where(needed, torch.inf).amin(-1, keepdim=True)
        if count == most or not inside[:, -1].any():
            return likeliest.where(inside, 0), tokens
        count = min(8 * count, most)
