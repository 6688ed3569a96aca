"""Formatted pairs in arrays: the token ids of all rows are in one, which is memory-mapped if they are many."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryFile, gettempdir
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

T = TypeVar("T")
Ids = npt.NDArray[np.int32]

PARTS = ("prompt", "chosen", "rejected")
# What is read of the rows that `format_pairs` writes. Nothing may be null.
COLUMNS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("preference", pa.float64(), nullable=False),
        *(pa.field(f"{part}_ids", pa.list_(pa.int32()), nullable=False) for part in PARTS),
        *(pa.field(f"{side}_truncated", pa.bool_(), nullable=False) for side in PARTS[1:]),
    ]
)


@dataclass(frozen=True)
class FormattedPairs:
    """Preference pairs as token ids.

    Part j of row i, in the order of `PARTS`, is `tokens[starts[i, j] : starts[i, j] + lengths[i, j]]`. Of a truncated response,
    the EOS is left out. Otherwise a model would learn to stop where `format_pairs.max_response_tokens` happened to truncate.
    """

    ids: list[str]  # of the rows
    preference: npt.NDArray[np.float64]  # (rows,): the probability that chosen is preferred
    tokens: Ids
    starts: npt.NDArray[np.int64]  # (rows, 3)
    lengths: npt.NDArray[np.int64]  # (rows, 3); 0: the row has no such response

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, row: int, number: int) -> Ids:
        """The token ids of a part of `PARTS`, without a copy; empty if the row has no such response."""
        start = self.starts[row, number]
        return self.tokens[start : start + self.lengths[row, number]]

    def take(self, rows: npt.NDArray[np.intp]) -> "FormattedPairs":
        """Some of the rows; their tokens are not copied."""
        ids = [self.ids[row] for row in rows]
        return FormattedPairs(ids, self.preference[rows], self.tokens, self.starts[rows], self.lengths[rows])


def of_batch(batch: pa.RecordBatch) -> FormattedPairs:
    """The pairs of a batch with `COLUMNS`.

    Raises:
        KeyError, ValueError: the batch is not as `format_pairs` writes it.
    """
    batch = batch.select(COLUMNS.names).cast(COLUMNS)
    parts, starts, lengths, size = [], [], [], 0
    for part in PARTS:
        lists = batch[f"{part}_ids"]
        offsets = lists.offsets.to_numpy().astype(np.int64)
        parts.append(lists.values[offsets[0] : offsets[-1]].to_numpy())
        starts.append(offsets[:-1] - offsets[0] + size)
        lengths.append(np.diff(offsets))
        size += len(parts[-1])
    for side, length in zip(PARTS[1:], lengths[1:], strict=True):
        length -= batch[f"{side}_truncated"].to_numpy(zero_copy_only=False) & (length > 0)
    if not lengths[0].all():
        raise ValueError("a row without a prompt")
    return FormattedPairs(
        batch["id"].to_pylist(),
        batch["preference"].to_numpy(),
        np.concatenate(parts),
        np.stack(starts, axis=1),
        np.stack(lengths, axis=1),
    )


def joined(parts: Iterable[FormattedPairs]) -> FormattedPairs:
    """The rows of all parts, with their tokens in a memory-mapped file.

    The file is in the folder that TMPDIR names. It has no name, so nothing of it is left when the process ends. The system
    reads its pages when they are needed, and takes them back when memory runs short.
    """
    read, size, nothing = [], 0, np.empty(0, np.int32)
    try:
        with TemporaryFile() as file:
            for part in parts:
                file.write(part.tokens.data)
                read.append(replace(part, tokens=nothing, starts=part.starts + size))
                size += len(part.tokens)
            file.flush()
            tokens = np.memmap(file, np.int32, "r")
    except OSError as error:
        error.filename = error.filename or gettempdir()  # the file has no name
        raise
    return FormattedPairs(
        [name for part in read for name in part.ids],
        np.concatenate([part.preference for part in read]),
        tokens.view(np.ndarray),
        np.concatenate([part.starts for part in read]),
        np.concatenate([part.lengths for part in read]),
    )


class LazyRows(Sequence[T]):
    """Rows that are made each time one is asked for."""

    def __init__(self, rows: Sequence[int], make: Callable[[int], T]) -> None:
        self._rows, self._make = rows, make

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> "LazyRows[T]": ...
    def __getitem__(self, place: int | slice) -> "T | LazyRows[T]":
        if isinstance(place, slice):
            return LazyRows(self._rows[place], self._make)
        return self._make(self._rows[place])
