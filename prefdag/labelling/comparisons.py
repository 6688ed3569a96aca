"""Which answers people compare. Imports no torch.

A comparison is known by a hash of what is compared. So a label can never be taken for that of other answers: if the policy is
trained again and answers anew, its comparisons are new ones, and if answers come back, so do their labels.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prefdag.pairs.turns import shown

if TYPE_CHECKING:
    import pandas as pd

    from prefdag.pairs.turns import Asked

DIGITS = 16  # of an id


class Turn(NamedTuple):
    """Of a dialogue, as people read it."""

    role: str
    text: str


class Comparison(NamedTuple):
    """Two answers to a prompt."""

    id: str
    prompt_id: str
    turns: list[Turn]
    first: str
    second: str

    @property
    def prompt(self) -> str:
        """The dialogue as one text."""
        return "\n\n".join(f"{turn.role}: {turn.text}" for turn in self.turns)


def comparison(prompt_id: str, asked: "Asked", first: str, second: str) -> Comparison:
    turns = [Turn(str(message["role"]), shown(message)) for message in asked.messages]
    if asked.tools:
        turns.insert(0, Turn("tools", json.dumps(asked.tools, ensure_ascii=False)))
    content = json.dumps([turns, first, second], ensure_ascii=False)
    return Comparison(hashlib.sha256(content.encode()).hexdigest()[:DIGITS], prompt_id, turns, first, second)


def ring(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Which of the answers to a prompt are compared, by number, the lower one first: each with the next one, the last with the
    first. Of equal answers, only the first one takes part.

    N answers are N comparisons, not N (N - 1) / 2, and any two of them are linked on two ways. So the Bradley-Terry model can
    rank all of them, and no answer's place hangs on a single label. Three answers are all three comparisons.
    """
    kept = [i for i, text in enumerate(texts) if text not in texts[:i]]
    if len(kept) < 3:
        return [(kept[0], kept[1])] if len(kept) == 2 else []
    return sorted((min(a, b), max(a, b)) for a, b in zip(kept, [*kept[1:], kept[0]], strict=True))


def comparisons(answers: "pd.DataFrame", dialogues: Mapping[str, "Asked"]) -> dict[tuple[int, int], Comparison]:
    """What people are asked about answers, by the numbers of the two rows.

    Args:
        answers: several to each prompt, with `id`, of the prompt, and `text`.
    """
    found: dict[tuple[int, int], Comparison] = {}
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(answers["id"]):
        rows.setdefault(key, []).append(row)
    texts: list[str] = answers["text"].tolist()
    for key, own in rows.items():
        for a, b in ring([texts[row] for row in own]):
            found[own[a], own[b]] = comparison(key, dialogues[key], texts[own[a]], texts[own[b]])
    return found


def as_json(comparison: Comparison) -> dict[str, Any]:
    return comparison._asdict() | {"turns": [turn._asdict() for turn in comparison.turns]}


def from_json(tree: Mapping[str, Any]) -> Comparison:
    """Raises `KeyError` or `TypeError` if it is no comparison."""
    return Comparison(**{**tree, "turns": [Turn(**turn) for turn in tree["turns"]]})
