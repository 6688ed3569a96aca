"""Prompts of a round from files of their own: read, and compared with the eval sets and the pipeline's pairs."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from prefdag.formats.context import tools_of, with_history, with_system
from prefdag.formats.dialogues import dialogue, ends_with_user, reply
from prefdag.formats.faults import Fault
from prefdag.formats.fields import Row, meaningful
from prefdag.formats.files import data_files
from prefdag.formats.records import read_records
from prefdag.formats.values import holds
from prefdag.gate.contamination import find_overlaps
from prefdag.lifecycle.errors import DataError
from prefdag.pairs import turns
from prefdag.pairs.ngrams import normalised
from prefdag.runtime.artifacts import read_table

if TYPE_CHECKING:
    from prefdag.pairs.eval_sets import EvalRow
    from prefdag.tokenizer.tokenizer import ChatTokenizer

log = logging.getLogger(__name__)

KEY = "rounds.prompts.source"
SPLITS = ("train", "val", "test")


def read_prompts(folder: Path) -> Iterator[dict[str, Any]]:
    """The prompts in the files of a folder, with the columns that a row of data/validated has of them.

    A row has `prompt`, a text or a dialogue, or a dialogue as `messages` or `conversations`, which ends with the user. It may
    have `tools`, and `chosen`, a response for checks to compare with.

    Raises:
        DataError: a row cannot be read.
    """
    for path, name in data_files(folder, KEY):
        for place, record in read_records(path, name):
            try:
                if isinstance(record, Fault):
                    raise record
                yield _row(f"{name}:{place}", Row(record))
            except Fault as fault:
                column = f" {fault.column}:" if fault.column else ""
                raise DataError(f"{name}:{place}:{column} {fault.reason}") from None


def _row(source: str, row: Row) -> dict[str, Any]:
    field = row.one_of("prompt", "messages", "conversations")
    if field is None:
        raise Fault(None, "no prompt; write a text as prompt, or a dialogue as messages")
    prompt = ends_with_user(with_system(row, with_history(row, dialogue(field, "user"))), field.path)
    tools = tools_of(row["tools"]) if row.has("tools") else None
    chosen = reply(row["chosen"])[1]["content"] if row.has("chosen") else None
    for other in row.unread():
        if holds(other.value) and meaningful(other.key):
            raise Fault(other.path, "not read, and the prompt would be another one without it; remove it")
    key = hashlib.sha256(json.dumps([prompt, tools]).encode()).hexdigest()[:16]
    return {"id": key, "source": source, "prompt": prompt, "tools": tools, "chosen": chosen}


def without_evals(rows: Iterable[dict[str, Any]], sets: Mapping[str, Sequence["EvalRow"]]) -> list[dict[str, Any]]:
    """The prompts that contain no row of an eval set, exactly or by 13 words in a row. A line says how many do."""
    every = list(rows)
    overlaps = find_overlaps(pd.DataFrame(every, columns=["source", "prompt"]), sets).drop_duplicates("pair")
    if len(overlaps):
        first = overlaps.iloc[0]
        log.warning(
            "%s: %d prompts contain a row of an eval set (%s has %s); they are dropped",
            *(KEY, len(overlaps), first["pair"], first["row"]),
        )
    return [row for row in every if row["source"] not in set(overlaps["pair"])]


def prompt_table(
    rows: Iterable[Mapping[str, Any]], pairs: Path, tokenizer: "ChatTokenizer", max_prompt_tokens: int
) -> pd.DataFrame:
    """The prompts that are new, in their order: the columns of `read_prompts`, and `prompt_ids`, cut as those of the pairs.

    A prompt that occurred before, or in any split of the pairs, is dropped: the same text but for letter case and white space,
    or the same tokens after the cut, as `format_pairs` tells splits apart. A line says how many.

    Args:
        pairs: the folder of the splits.

    Raises:
        DataError: the template rejects a dialogue.
    """
    known = {key for split in SPLITS for key in _known(pairs / f"{split}.parquet")}
    seen: set[Any] = set()
    kept, repeated, in_pairs = [], 0, 0
    for row in rows:
        try:
            encoded = tokenizer.dialogue(turns.messages(row["prompt"]), turns.tools(row)).prompt(max_prompt_tokens)
        except DataError as error:
            raise DataError(f"{row['source']}: {error}") from None
        keys = {normalised(encoded.text), tuple(encoded.ids)}
        if keys & known:
            in_pairs += 1
        elif keys & seen:
            repeated += 1
        else:
            kept.append({**row, "prompt_ids": encoded.ids})
        seen |= keys
    if repeated or in_pairs:
        log.warning(
            "%s: of %d prompts, %d repeat another one, and %d are in data/pairs (train, val or test); they are dropped",
            *(KEY, len(kept) + repeated + in_pairs, repeated, in_pairs),
        )
    return pd.DataFrame(kept, columns=["id", "source", "prompt", "tools", "chosen", "prompt_ids"])


def _known(path: Path) -> Iterator[Any]:
    for row in read_table(path, columns=["prompt", "prompt_ids"]).to_pylist():
        yield normalised(row["prompt"])
        yield tuple(row["prompt_ids"])
