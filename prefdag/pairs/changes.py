"""What formatting left out or changed, for people to check, and examples of what a model then reads."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prefdag.pairs import turns
from prefdag.pairs.turns import SIDES

if TYPE_CHECKING:
    from prefdag.tokenizer.tokenizer import ChatTokenizer


class FormattingChange(NamedTuple):
    """One row of changes.csv."""

    source: str  # FILE:ROW
    column: str
    change: str  # left out, neutralised, altered or cut
    reason: str


def formatting_changes(
    row: Mapping[str, Any], encoded: Mapping[str, Any], tokenizer: "ChatTokenizer"
) -> list[FormattingChange]:
    """The changes to a validated row. If it is left out, no other change is listed.

    Args:
        row: as validated; its prompt is a list of turns.
        encoded: the same row from `encoding.encode_pair`.
    """
    source, parts = row["source"], {part: encoded[part] for part in ("prompt", *SIDES)}
    if encoded["chosen"].ids == encoded["rejected"].ids:
        return [FormattingChange(source, "rejected", "left out", "the cut leaves the same tokens as of chosen")]
    for side in SIDES:
        if parts[side].truncated and not tokenizer.decode(parts[side].ids[:-1]).strip():
            return [FormattingChange(source, side, "left out", "the cut leaves nothing but white space")]
    changes = []
    texts = {
        "prompt": "\n".join(map(turns.typed_text, row["prompt"])),
        **{side: turns.typed_text({"content": row[side], "extra": row.get(f"{side}_extra")}) for side in SIDES},
    }
    for part, text in texts.items():
        if typed := tokenizer.typed_controls(text):
            reason = f"{typed} control tokens typed in it become ordinary text"
            changes.append(FormattingChange(source, part, "neutralised", reason))
    for part, whole in parts.items():
        if whole.altered:
            changes.append(FormattingChange(source, part, "altered", whole.altered))
        if whole.truncated:
            kept = f"keeps its last {len(whole.ids)}" if part == "prompt" else f"keeps its first {len(whole.ids) - 1}"
            changes.append(FormattingChange(source, part, "cut", f"{whole.length} tokens, {kept}"))
    return changes


def example(row: Mapping[str, Any], tokenizer: "ChatTokenizer") -> dict[str, Any]:
    """A formatted row as a model reads it.

    It has `source`, and a list of pieces for `prompt` and for each response of the row. A piece has `text`; `kind`: read (in
    the prompt, so not scored), scored, or not scored (the end of the turn after a cut); and `control`, true for a control
    token.

    Args:
        row: of `encoding.PAIRS_SCHEMA`.
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
    """Whether tokenising the prompt and a response as one text would move their boundary; one value per response."""
    return [tokenizer.joins(row["prompt"], row[side]) for side in SIDES if row[f"{side}_ids"]]
