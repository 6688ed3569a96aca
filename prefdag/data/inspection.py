"""What formatting did to the pairs, for people to look at: what was left out or changed, and what a model then reads."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from prefdag.data.chat import ChatTokenizer, Encoded
from prefdag.data.wording import normalised

SIDES = ("chosen", "rejected")
SAMPLE = 2000  # rows


class Change(NamedTuple):
    """One row of changes.csv."""

    source: str  # FILE:ROW
    column: str
    change: str  # left out, neutralised or cut
    reason: str


def changes(row: Mapping[str, Any], encoded: Mapping[str, Any], tokenizer: ChatTokenizer) -> list[Change]:
    """What becomes of a validated row. One that is left out has nothing else said about it.

    Args:
        row: as validated, its prompt a list of turns.
        encoded: the same row from `pairs.encode_pair`.
    """
    source, parts = row["source"], {part: encoded[part] for part in ("prompt", *SIDES)}
    if encoded["chosen"].ids == encoded["rejected"].ids:
        return [Change(source, "rejected", "left out", "the cut leaves the same tokens as of chosen")]
    for side in SIDES:
        if parts[side].truncated and not tokenizer.decode(parts[side].ids[:-1]).strip():
            return [Change(source, side, "left out", "the cut leaves nothing but white space")]
    found = []
    texts = {
        "prompt": "\n".join(turn["content"] for turn in row["prompt"]),
        **{side: row[side] or "" for side in SIDES},
    }
    for part, text in texts.items():
        if typed := tokenizer.typed_controls(text):
            found.append(
                Change(source, part, "neutralised", f"{typed} control tokens typed in it become ordinary text")
            )
    for part, whole in parts.items():
        if whole.truncated:
            kept = f"keeps its last {len(whole.ids)}" if part == "prompt" else f"keeps its first {len(whole.ids) - 1}"
            found.append(Change(source, part, "cut", f"{whole.length} tokens, {kept}"))
    return found


def examples(rows: Sequence[Mapping[str, Any]], tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    """A few encoded rows as a model reads them: the shortest, the median and the longest, by tokens.

    Each has `source`, and for `prompt` and each response that there is a list of pieces: `text`, and what it is, `kind`:
    read (seen, not scored), scored, or not scored (the EOS that we put behind a cut); `control` for control tokens.
    """
    ordered = sorted(rows, key=lambda row: sum(len(row[part].ids) for part in ("prompt", *SIDES)))
    picked = dict.fromkeys([0, len(ordered) // 2, len(ordered) - 1]) if ordered else {}
    return [
        {"source": row["source"], "prompt": _pieces(row["prompt"].ids, "read", tokenizer)}
        | {side: _response(row[side], tokenizer) for side in SIDES if row[side].ids}
        for row in (ordered[place] for place in picked)
    ]


def _response(part: Encoded, tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    scored, unscored = (part.ids[:-1], part.ids[-1:]) if part.truncated else (part.ids, [])
    return _pieces(scored, "scored", tokenizer) + _pieces(unscored, "not scored", tokenizer)


def _pieces(ids: Sequence[int], kind: str, tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    return [{"text": text, "control": control, "kind": kind} for text, control in tokenizer.pieces(ids)]


def boundary_joins(rows: Sequence[Mapping[str, Any]], tokenizer: ChatTokenizer) -> dict[str, float]:
    """Of how many responses, and in which share of them, tokenising them with the prompt would have moved the boundary.

    Of very many rows some are looked at, evenly spaced: the share is what matters.
    """
    some = rows[:: 1 + len(rows) // SAMPLE]
    joined = [tokenizer.joins(row["prompt"], row[side].text) for row in some for side in SIDES if row[side].ids]
    return {"responses": len(joined), "joined": sum(joined), "share": round(sum(joined) / max(1, len(joined)), 4)}


def leaked(tables: Mapping[str, pa.Table]) -> dict[str, int]:
    """How many rows of each split but train have a prompt, `normalised`, that stands in train."""
    prompts = {name: [normalised(text) for text in table["prompt"].to_pylist()] for name, table in tables.items()}
    train = set(prompts.pop("train"))
    return {name: sum(prompt in train for prompt in texts) for name, texts in prompts.items()}
