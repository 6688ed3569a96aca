"""What formatting did to the pairs, for people to look at: what was left out or changed, and what a model then reads."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from prefdag.pairs.tokenizer import ChatTokenizer

SIDES = ("chosen", "rejected")


class Change(NamedTuple):
    """One row of changes.csv."""

    source: str  # FILE:ROW
    column: str
    change: str  # left out, neutralised or cut
    reason: str


def changes(row: Mapping[str, Any], encoded: Mapping[str, Any], tokenizer: "ChatTokenizer") -> list[Change]:
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


def example(row: Mapping[str, Any], tokenizer: "ChatTokenizer") -> dict[str, Any]:
    """A formatted row as a model reads it.

    It has `source`, and for `prompt` and each response that there is a list of pieces: `text`, and what it is, `kind`: read
    (seen, not scored), scored, or not scored (the EOS that we put behind a cut); `control` for control tokens.

    Args:
        row: of `pairs.PAIRS_SCHEMA`.
    """
    shown = {"source": row["source"], "prompt": _pieces(row["prompt_ids"], "read", tokenizer)}
    for side in SIDES:
        if ids := row[f"{side}_ids"]:
            scored, unscored = (ids[:-1], ids[-1:]) if row[f"{side}_truncated"] else (ids, [])
            shown[side] = _pieces(scored, "scored", tokenizer) + _pieces(unscored, "not scored", tokenizer)
    return shown


def _pieces(ids: Sequence[int], kind: str, tokenizer: "ChatTokenizer") -> list[dict[str, Any]]:
    return [{"text": text, "control": control, "kind": kind} for text, control in tokenizer.pieces(ids)]


def boundary_joins(row: Mapping[str, Any], tokenizer: "ChatTokenizer") -> list[bool]:
    """Of each response of a formatted row, whether tokenising it with the prompt would have moved the boundary."""
    return [tokenizer.joins(row["prompt"], row[side]) for side in SIDES if row[f"{side}_ids"]]
