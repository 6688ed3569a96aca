"""Held-out pairs one by one: their rewards, and how much each token contributes to them."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from prefdag.report.page.results import TextTrack

SIDES = ("chosen", "rejected")
SHADES = 4  # for each sign
WITHIN = 0.98  # the share of tokens whose log-ratio is within the scale; the others get the strongest shade
MOST = 4  # tokens listed as having the largest log-ratios


@dataclass(frozen=True)
class ShadedToken:
    """The text of a token, or of several tokens that spell one character, and its log pi/pi_ref in nats."""

    text: str
    logratio: float
    shade: str  # a class of style.css: up-1 to up-4, down-1 to down-4, or none


@dataclass(frozen=True)
class ShownResponse:
    """A response: its scored tokens, and the text that was not scored."""

    name: str
    reward: float
    logratio: float
    n_tokens: int
    tokens: list[ShadedToken]
    largest: list[ShadedToken]  # the tokens with the largest absolute log-ratios
    rest: str  # the text after the cut
    respelled: bool  # the tokens do not spell the original text; `rest` is then the whole text


@dataclass(frozen=True)
class Examples:
    """The rows shown, and the log-ratio from which a token gets the strongest shade."""

    rows: list[dict[Hashable, Any]]
    of: int  # the number of held-out rows
    full: float
    kinds: list[str]  # the kinds that occur: right, wrong, tie; or desirable, undesirable for unpaired responses


def examples(text: "TextTrack", count: int) -> Examples:
    """At most `count` held-out pairs, evenly spaced from the largest margin to the smallest, so that none is hand-picked.

    Unpaired responses go from the highest reward to the lowest. `sides` of a row are its responses, one or two.
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
                _response(name, record, tokens[record["id"], name], full)
                for name in SIDES
                if pd.notna(record[f"reward_{name}"])
            ],
        }
        for record in records
    ]
    kinds = {row["kind"] for row in rows}
    names = ("right", "wrong", "tie", "desirable", "undesirable")
    return Examples(rows, len(pairs), full, [name for name in names if name in kinds])


def kind(record: Mapping[Hashable, Any]) -> str:
    """How a pair is ranked, or the label of an unpaired response."""
    if pd.isna(record["margin"]):
        return "desirable" if pd.notna(record["reward_chosen"]) else "undesirable"
    return "right" if record["margin"] > 0 else "wrong" if record["margin"] < 0 else "tie"


def strongest(tokens: pd.DataFrame) -> float:
    """The absolute log-ratio, in nats, within which `WITHIN` of all held-out tokens lie."""
    values = np.abs(np.concatenate(tokens["logratios"].to_list()))
    return float(np.quantile(values, WITHIN))


def shaded_tokens(texts: Sequence[str], logratios: Sequence[float], full: float) -> list[ShadedToken]:
    """The tokens as text. A token without text is part of a character and is merged with the next token that has text."""
    tokens, pending = [], 0.0
    for number, (text, logratio) in enumerate(zip(texts, logratios, strict=True), 1):
        pending += float(logratio)
        if text or number == len(texts):
            tokens.append(ShadedToken(text, pending, shade(pending, full)))
            pending = 0.0
    return tokens


def shade(logratio: float, full: float) -> str:
    """The CSS class of a log-ratio: its sign, and its size in quarters of `full`, rounded."""
    level = round(SHADES * min(1.0, abs(logratio) / full)) if full else 0
    return f"{'up' if logratio > 0 else 'down'}-{level}" if level else ""


def _response(name: str, record: Mapping[Hashable, Any], row: Mapping[Hashable, Any], full: float) -> ShownResponse:
    tokens, written, cut = (
        shaded_tokens(row["texts"], row["logratios"], full),
        record[name],
        record[f"{name}_truncated"],
    )
    scored = "".join(row["texts"]).rstrip("\N{REPLACEMENT CHARACTER}")  # the cut may be inside a character
    # Some tokenizers change the text: letter case, accents, spaces.
    respelled = not (written.startswith(scored) if cut else scored.startswith(written))
    return ShownResponse(
        name=name,
        reward=record[f"reward_{name}"],
        logratio=sum(token.logratio for token in tokens),
        n_tokens=len(row["texts"]),
        tokens=tokens,
        largest=sorted((token for token in tokens if token.shade), key=lambda token: -abs(token.logratio))[:MOST],
        rest=written if respelled else written[len(scored) :],
        respelled=respelled,
    )
