"""Format preference pairs: tokenise the validated rows, and write them in splits without leaks.

There are two passes over the rows, in batches. The first encodes all rows. When every prompt is known and has a split, the
second writes each row to its split. In between, only a few numbers per row are kept in memory. If a limit is `auto`, a pass
before them encodes the rows and measures the lengths, and the first pass only cuts.
"""

import csv
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from prefdag.lifecycle.errors import DataError
from prefdag.pairs import limits
from prefdag.pairs.batches import batches, encoded_rows, measure
from prefdag.pairs.changes import FormattingChange, boundary_joins, example, formatting_changes
from prefdag.pairs.encoding import PAIRS_SCHEMA, PARTS, columns_of
from prefdag.pairs.ngrams import normalised
from prefdag.pairs.observations import Observations, cut_lines, template_lines, template_writes, turn_marks
from prefdag.pairs.splits import LEFT_OUT, SPLITS, check_fractions, digest, split_by_prompt

if TYPE_CHECKING:
    from prefdag.config.format_pairs import FormatPairs
    from prefdag.pairs.limits import Limits
    from prefdag.tokenizer.dialogue import Encoded
    from prefdag.tokenizer.tokenizer import ChatTokenizer

logger = logging.getLogger(__name__)

BOUNDARIES = 2_000  # rows whose boundary is checked, evenly spaced; enough to estimate the share


class FormattingReport(NamedTuple):
    """Counts of the formatted pairs, and a few examples of them."""

    summary: dict[str, Any]
    examples: list[dict[str, Any]]


class FirstPass(NamedTuple):
    """What the second pass needs to know about the rows that are kept, and the counts of changes."""

    keys: npt.NDArray[np.uint64]  # (rows, 3), see `_keys`
    published: npt.NDArray[np.str_]  # the published split of each row, "" if it has none, (rows,)
    kept: dict[str, npt.NDArray[np.int32]]  # tokens after the cut by part, (rows,); 0 if there is no such response
    lengths: dict[str, npt.NDArray[np.int32]]  # tokens before the cut
    left_out: int
    first_left_out: FormattingChange | None
    changes: Counter[tuple[str, str]]
    observations: Observations


def format_pairs(
    source: Path,
    out: Path,
    changed: Path,
    tokenizer: "ChatTokenizer",
    params: "FormatPairs",
    window: int | None = None,
) -> FormattingReport:
    """Write the validated pairs by split: `out`/train.parquet and so on, with `PAIRS_SCHEMA`, in their original order.

    A row is left out and listed if the cut makes both responses the same tokens (its loss is ln 2, its gradient 0), if it
    leaves nothing of a response, or if its prompt is also in another published split (see `split_by_prompt`).

    Args:
        out: an existing folder.
        changed: the CSV of `FormattingChange` to write.
        window: the model's positions, None if it does not say.

    Raises:
        DataError: the template rejects a dialogue, too many rows are left out or were already rendered, there are too few
            prompts for the splits, or a split has no chosen or no rejected response.
        ParamsError: the fractions leave nothing to train on, or the limits do not fit into the window.
    """
    check_fractions("format_pairs", params)
    everything, uncut = out / "everything.parquet", out / "uncut.parquet"
    lengths = limits.given(params) or limits.choose(params, *measure(source, uncut, tokenizer, params), window)
    limits.check_window(lengths, window)
    first_pass = _encode(source, uncut, everything, changed, tokenizer, params, lengths)
    uncut.unlink(missing_ok=True)
    first_pass.observations.check(params.max_rendered)
    n = len(first_pass.keys)
    if first_pass.first_left_out:
        first, left_out = first_pass.first_left_out, first_pass.left_out
        message = f"{left_out} of {n + left_out} pairs are left out, the first: "
        message += f"{first.source}:{first.column}: {first.reason}"
        if left_out > params.max_left_out * (n + left_out):
            raise DataError(f"{message}; raise format_pairs.max_response_tokens or max_left_out")
        logger.warning("%s", message)
    splits = split_by_prompt(first_pass.keys[:, :2], params.val_fraction, params.test_fraction, first_pass.published)
    kept = splits != LEFT_OUT
    _check_sides(splits, first_pass.kept)
    total = sum(first_pass.kept.values())
    by_length = [row for row in np.argsort(total, kind="stable").tolist() if kept[row]]
    # The shortest, the median and the longest.
    picked = list(dict.fromkeys(by_length[place] for place in (0, len(by_length) // 2, -1)))
    leaks, shown, joined = _write_splits(everything, out, splits, picked, tokenizer)
    everything.unlink()
    _list_leaks(leaks, changed, first_pass.changes)
    parts = {part: _lengths(first_pass.kept[part][kept], first_pass.lengths[part][kept]) for part in PARTS}
    summary = {
        "template": params.template,
        **lengths._asdict(),
        "rows": {name: int((splits == name).sum()) for name in SPLITS},
        "published": {name: int((first_pass.published == name).sum()) for name in SPLITS},
        "prompts": {name: len(np.unique(first_pass.keys[splits == name, 2])) for name in SPLITS},
        "changes": [
            {"change": c, "column": part, "rows": rows} for (c, part), rows in sorted(first_pass.changes.items())
        ],
        "leaked": _leaked(out),
        "boundary": {
            "responses": len(joined),
            "joined": sum(joined),
            "share": round(sum(joined) / max(1, len(joined)), 4),
        },
        "template_writes": template_writes(tokenizer),
        **first_pass.observations.summary(),
        **parts,
    }
    cut = {part: numbers["truncated"] for part, numbers in parts.items()}
    for line in (
        *template_lines(tokenizer),
        *first_pass.observations.lines(),
        *cut_lines(cut, lengths, is_auto=limits.given(params) is None),
    ):
        logger.warning("%s", line)
    return FormattingReport(summary, [shown[row] for row in picked])


def _list_leaks(leaks: list[FormattingChange], changed: Path, counts: Counter[tuple[str, str]]) -> None:
    """Add the rows that `split_by_prompt` left out to the list of changes."""
    if not leaks:
        return
    with changed.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(leaks)
    counts.update((leak.change, leak.column) for leak in leaks)
    logger.warning(
        "published splits share prompts: %d rows are left out, the first: %s:%s: %s",
        *(len(leaks), leaks[0].source, leaks[0].column, leaks[0].reason),
    )


def _encode(
    source: Path,
    uncut: Path,
    out: Path,
    changed: Path,
    tokenizer: "ChatTokenizer",
    params: "FormatPairs",
    lengths: "Limits",
) -> FirstPass:
    """The first pass: write every row that is kept, encoded, to `out`, and all changes to `changed`."""
    keys: list[npt.NDArray[np.uint64]] = []
    kept: list[npt.NDArray[np.int32]] = []
    before: list[npt.NDArray[np.int32]] = []
    published: list[str] = []
    left_out, first, counts = 0, None, Counter[tuple[str, str]]()
    observations = Observations(turn_marks(tokenizer))
    with pq.ParquetWriter(out, PAIRS_SCHEMA) as writer, changed.open("w", encoding="utf-8", newline="") as file:
        listing = csv.writer(file, lineterminator="\n")
        listing.writerow(FormattingChange._fields)
        for rows in encoded_rows(source, uncut, tokenizer, params, lengths):
            kept_rows = []
            for row, encoded in rows:
                observations.add(row, encoded)
                changes = formatting_changes(row, encoded, tokenizer)
                listing.writerows(changes)
                counts.update((change.change, change.column) for change in changes)
                if changes and changes[0].change == "left out":
                    left_out, first = left_out + 1, first or changes[0]
                else:
                    kept_rows.append(encoded)
            if kept_rows:
                writer.write_table(pa.Table.from_pylist([columns_of(row) for row in kept_rows], PAIRS_SCHEMA))
                published += [row.get("split") or "" for row in kept_rows]
                keys.append(np.array([_keys(row["prompt"], params.seed) for row in kept_rows], dtype=np.uint64))
                kept.append(np.array([[len(row[part].ids) for part in PARTS] for row in kept_rows], dtype=np.int32))
                before.append(np.array([[row[part].length for part in PARTS] for row in kept_rows], dtype=np.int32))
    none = np.empty((0, 3))
    n_kept, n_before = (
        dict(zip(PARTS, np.concatenate([none.astype(np.int32), *each]).T, strict=True)) for each in (kept, before)
    )
    return FirstPass(
        np.concatenate([none.astype(np.uint64), *keys]),
        np.array(published, dtype="U8"),
        n_kept,
        n_before,
        left_out,
        first,
        counts,
        observations,
    )


def _keys(prompt: "Encoded", seed: int) -> tuple[int, int, int]:
    """Two keys that must not be in more than one split, and the digest of the exact prompt.

    The first key is the `normalised` text, the second the tokens after the cut, since what the model reads must not leak
    either. Only the first depends on the seed; it gives the order in which prompts are assigned to splits.
    """
    return digest(normalised(prompt.text), seed), digest(tuple(prompt.ids)), digest(prompt.text)


def _write_splits(
    everything: Path, out: Path, splits: npt.NDArray[np.str_], picked: list[int], tokenizer: "ChatTokenizer"
) -> tuple[list[FormattingChange], dict[int, dict[str, Any]], list[bool]]:
    """The second pass: write every row to its split. Returns the rows left out, those `picked`, and some `boundary_joins`."""
    leaks: list[FormattingChange] = []
    shown: dict[int, dict[str, Any]] = {}
    joined: list[bool] = []
    writers = {name: pq.ParquetWriter(out / f"{name}.parquet", PAIRS_SCHEMA) for name in SPLITS}
    try:
        first = 0
        for batch in batches(everything):
            table = pa.Table.from_batches([batch], PAIRS_SCHEMA)
            split_of = splits[first : first + len(table)]
            for name, writer in writers.items():
                part = table.filter(pa.array(split_of == name))
                if len(part):
                    writer.write_table(part)
            leaks += [
                FormattingChange(
                    row, "split", "left out", "its prompt is also in a published split that goes before its own"
                )
                for row in table["source"].filter(pa.array(split_of == LEFT_OUT)).to_pylist()
            ]
            step = 1 + len(splits) // BOUNDARIES
            for place in range(-first % step, len(table), step):
                joined += boundary_joins(table.slice(place, 1).to_pylist()[0], tokenizer)
            for row in picked:
                if 0 <= row - first < len(table):
                    shown[row] = example(table.slice(row - first, 1).to_pylist()[0], tokenizer)
            first += len(table)
    finally:
        for writer in writers.values():
            writer.close()
    return leaks, shown, joined


def _check_sides(splits: npt.NDArray[np.str_], kept: dict[str, npt.NDArray[np.int32]]) -> None:
    """Check that every split with rows has responses of both kinds. Raises `DataError`."""
    for split in SPLITS:
        for side, kind in (("chosen", "desirable"), ("rejected", "undesirable")):
            rows = kept[side][splits == split]
            if len(rows) and not rows.any():
                raise DataError(
                    f"data/validated/pairs.parquet: column {side}: no {kind} response among the {len(rows)} rows of split "
                    f"{split}; add some, or change the fractions or the seed of format_pairs"
                )


def _leaked(folder: Path) -> dict[str, int]:
    """How many rows of each split but train have a prompt that is also in train, `normalised`; counted in the written files."""
    prompts = {
        name: np.array(
            [
                digest(normalised(text))
                for batch in batches(folder / f"{name}.parquet", ["prompt"])
                for text in batch["prompt"].to_pylist()
            ],
            dtype=np.uint64,
        )
        for name in SPLITS
    }
    train = prompts.pop("train")
    return {name: int(np.isin(texts, train).sum()) for name, texts in prompts.items()}


def _lengths(kept: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> dict[str, float]:
    """Tokens after the cut, the share of texts that were cut, and quantiles of the lengths before the cut."""
    present = kept > 0
    kept, lengths = kept[present], lengths[present]
    return {
        "tokens": int(kept.sum()),
        "truncated": round(float((kept < lengths).mean()), 4),
        **{f"length_p{p}": int(np.percentile(lengths, p, method="inverted_cdf")) for p in (10, 50, 90, 100)},
    }
