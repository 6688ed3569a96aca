"""The pair in one record."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from prefdag.formats.dialogues import Message
    from prefdag.formats.judgements import Scores


class RecordPair(NamedTuple):
    """The pair in one record. An unpaired row has one response: chosen if it is desirable, else rejected."""

    prompt: list["Message"]
    chosen: "Message | None"
    rejected: "Message | None"
    preference: float | None = None  # None: the row only says which one is chosen
    scores: "Scores | None" = None
    tools: str | None = None  # a JSON list
