"""Held-out pairs one by one: their rewards, and which tokens these come from."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from prefdag.report.page.results import TextTrack

SIDES = ("chosen", "rejected")
SHADES = 4  # on either side of none
WITHIN = 0.98  # the share of tokens whose shade is not the strongest for being off the scale
MOST = 4  # tokens that are named as moved most


@dataclass(frozen=True)
class Piece:
    """The text of a token, or of the few that spell a character together, and log pi/pi_ref of it in nats."""

    text: str
    logratio: float
    shade: str  # a class of style.css: up-1 to up-4, down-1 to down-4, or none


@dataclass(frozen=True)
class Side:
    """A response: what of it was scored, in pieces, and what was not."""

    name: str
    reward: float
    logratio: float
    n_tokens: int
    pieces: list[Piece]
    moved: list[Piece]  # those whose log-ratio is furthest from zero
    rest: str  # behind the cut
    apart: bool  # the tokens do not spell the text as it was written: `rest` is all of it


@dataclass(frozen=True)
class Examples:
    """What is shown of how many rows, and the log-ratio from which on a token has the strongest shade."""

    rows: list[dict[Hashable, Any]]
    of: int
    full: float
    kinds: list[str]  # what a row can be: right, wrong, a tie; of lone responses desirable, undesirable


def examples(text: "TextTrack", count: int) -> Examples:
    """At most `count` held-out pairs, evenly spaced from the largest margin to the smallest, so that none is hand-picked.

    Of lone responses, from the highest reward to the lowest. `sides` are the responses that there are.
    """
    pairs = text.pairs
    by = pairs["margin"].fillna(pairs["reward_chosen"]).fillna(pairs["reward_rejected"])
    ordered = pairs.assign(by=by).sort_values(["by", "id"], ascending=[False, True])
    where = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int))
    records = ordered.iloc[where].to_dict("records")
    full = strongest(text.tokens)
    tokens = {(row["id"], row["side"]): row for row in text.tokens.to_dict("records")}
    rows = [
        {
            **record,
            "kind": kind(record),
            "sides": [
                _side(name, record, tokens[record["id"], name], full)
                for name in SIDES
                if pd.notna(record[f"reward_{name}"])
            ],
        }
        for record in records
    ]
    found = {row["kind"] for row in rows}
    names = ("right", "wrong", "tie", "desirable", "undesirable")
    return Examples(rows, len(pairs), full, [name for name in names if name in found])


def kind(record: Mapping[Hashable, Any]) -> str:
    """How a pair is ranked, or what a lone response was labelled."""
    if pd.isna(record["margin"]):
        return "desirable" if pd.notna(record["reward_chosen"]) else "undesirable"
    return "right" if record["margin"] > 0 else "wrong" if record["margin"] < 0 else "tie"


def strongest(tokens: pd.DataFrame) -> float:
    """The absolute log-ratio, in nats, within which `WITHIN` of all held-out tokens lie."""
    values = np.abs(np.concatenate(tokens["logratios"].to_list()))
    return float(np.quantile(values, WITHIN))


def pieces(texts: Sequence[str], logratios: Sequence[float], full: float) -> list[Piece]:
    """Tokens as text; one that adds none, being part of a character, goes with the next that does."""
    found, waiting = [], 0.0
    for number, (text, logratio) in enumerate(zip(texts, logratios, strict=True), 1):
        waiting += float(logratio)
        if text or number == len(texts):
            found.append(Piece(text, waiting, shade(waiting, full)))
            waiting = 0.0
    return found


def shade(logratio: float, full: float) -> str:
    """The class for a log-ratio: the sign, and how many quarters of `full` it is, rounded."""
    level = round(SHADES * min(1.0, abs(logratio) / full)) if full else 0
    return f"{'up' if logratio > 0 else 'down'}-{level}" if level else ""


def _side(name: str, record: Mapping[Hashable, Any], row: Mapping[Hashable, Any], full: float) -> Side:
    shown, written, cut = pieces(row["texts"], row["logratios"], full), record[name], record[f"{name}_truncated"]
    scored = "".join(row["texts"]).rstrip("\N{REPLACEMENT CHARACTER}")  # the cut may fall within a character
    # Some tokenizers change what they read: letter case, accents, spaces.
    apart = not (written.startswith(scored) if cut else scored.startswith(written))
    return Side(
        name=name,
        reward=record[f"reward_{name}"],
        logratio=sum(piece.logratio for piece in shown),
        n_tokens=len(row["texts"]),
        pieces=shown,
        moved=sorted((piece for piece in shown if piece.shade), key=lambda piece: -abs(piece.logratio))[:MOST],
        rest=written if apart else written[len(scored) :],
        apart=apart,
    )
