"""Packing: prompts and responses in one row without padding, so that each prompt is computed once for all its responses.

Worked example with two groups: prompt [1, 2] with responses [3, 4] and [5], and prompt [6] with response [7, 8]:

    input_ids     1  2  3  4  5  6  7  8
    position_ids  0  1  2  3  2  0  1  2      each response follows its prompt
    predictors    1  2  1  5  6               the prompt's last token predicts the first token of every response
    targets       3  4  5  7  8
    owners        0  0  1  2  2               the index of the response that the target belongs to
    segments      (0, 2, (2, 1)), (5, 1, (2,))

`attention.py` masks the other responses of the same prompt, and other groups.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

TokenIds = Sequence[int] | npt.NDArray[np.integer]


class Group(NamedTuple):
    """A prompt and the responses to score after it, as token ids. None is empty."""

    prompt: TokenIds
    responses: tuple[TokenIds, ...]

    @property
    def n_tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


class Segment(NamedTuple):
    """The place of a group in a pack: the index of its first token, the length of its prompt, the lengths of its responses."""

    start: int
    prompt: int
    responses: tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """Groups in one row of T tokens, S of them scored. All tensors are int64."""

    input_ids: Tensor  # (T,)
    position_ids: Tensor  # (T,)
    predictors: Tensor  # (S,): index of the token whose logits predict the target
    targets: Tensor  # (S,)
    owners: Tensor  # (S,): index of the target's response, in the order of the groups
    segments: tuple[Segment, ...]

    @property
    def n_responses(self) -> int:
        return sum(len(segment.responses) for segment in self.segments)

    def to(self, device: torch.device) -> "Pack":
        """The same pack on another device."""
        return Pack(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.predictors.to(device),
            self.targets.to(device),
            self.owners.to(device),
            self.segments,
        )

    def padded(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same groups as one row per response, each with its prompt, padded on the right.

        Returns:
            input_ids and attention_mask, int64 (responses, longest), and the row and column of the token that predicts each
            target, int64 (S,).
        """
        prompts = [self.input_ids[s.start : s.start + s.prompt] for s in self.segments for _ in s.responses]
        ends = [s.start + s.prompt + sum(s.responses[: i + 1]) for s in self.segments for i in range(len(s.responses))]
        lengths = [length for s in self.segments for length in s.responses]
        rows = [
            torch.cat([prompt, self.input_ids[end - length : end]])
            for prompt, end, length in zip(prompts, ends, lengths, strict=True)
        ]
        columns = [
            torch.arange(length, device=prompt.device) + len(prompt) - 1
            for prompt, length in zip(prompts, lengths, strict=True)
        ]
        masks = [torch.ones_like(row) for row in rows]
        return (
            pad_sequence(rows, batch_first=True),
            pad_sequence(masks, batch_first=True),
            self.owners,
            torch.cat(columns),
        )


def pack(groups: Sequence[Group]) -> Pack:
    """Pack `groups` into one row, in order. Raises `ValueError` for an empty prompt or response."""
    ids: list[TokenIds] = []
    positions: list[np.ndarray] = []
    predictors: list[np.ndarray] = []
    targets: list[TokenIds] = []
    owners: list[np.ndarray] = []
    segments: list[Segment] = []
    end = 0
    for prompt, responses in groups:
        lengths = tuple(map(len, responses))
        if not len(prompt) or not all(lengths):
            raise ValueError("a prompt and each response need at least one token; an empty prompt needs a BOS")
        segments.append(Segment(end, len(prompt), lengths))
        ids += [prompt, *responses]
        targets += responses
        positions.append(np.arange(len(prompt)))
        end += len(prompt)
        last = end - 1
        for length in lengths:
            predictors.append(np.array([last, *range(end, end + length - 1)]))
            positions.append(np.arange(len(prompt), len(prompt) + length))
            end += length
            owners.append(np.full(length, len(owners)))

    def joined(parts: Sequence[TokenIds]) -> Tensor:
        return torch.tensor(np.concatenate(parts, dtype=np.int64))

    return Pack(joined(ids), joined(positions), joined(predictors), joined(targets), joined(owners), tuple(segments))


def batches(groups: Iterable[Group], max_tokens: int) -> Iterator[list[int]]:
    """Indices of `groups`, in order, in batches of at most `max_tokens` tokens. A longer group is a batch on its own."""
    batch: list[int] = []
    total = 0
    for number, group in enumerate(groups):
        if batch and total + group.n_tokens > max_tokens:
            yield batch
            batch, total = [], 0
        batch.append(number)
        total += group.n_tokens
    if batch:
        yield batch
