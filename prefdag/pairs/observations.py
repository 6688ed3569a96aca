"""What a pass over the rows finds that a user may not expect: rows that were rendered already, blocks that are never closed."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prefdag.lifecycle.errors import DataError
from prefdag.pairs import turns
from prefdag.pairs.rendering import any_of

FILE = "data/validated/pairs.parquet"


class Observations:
    """Counts over the rows that were added."""

    def __init__(self, turn_marks: Sequence[str]) -> None:
        """Start with no rows; `turn_marks` as `Renderer.turn_marks`."""
        self.marks: re.Pattern[str] = any_of(turn_marks)
        self.rows = self.responses = self.rendered = 0
        self.first_rendered = ""
        self.unclosed: Counter[str] = Counter()
        self.altered: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any], encoded: Mapping[str, Any]) -> None:
        """Count a validated row and what `formatting.encode_pair` made of it."""
        self.rows += 1
        texts = [turn["content"] for turn in row["prompt"]] + [row[side] or "" for side in turns.SIDES]
        match = next(filter(None, map(self.marks.search, texts)), None)
        if match:
            self.rendered += 1
            self.first_rendered = self.first_rendered or f"{row['source']} has {match[0]!r}"
        self.responses += sum(bool(encoded[side].ids) for side in turns.SIDES)
        self.unclosed.update(encoded["unclosed"])
        self.altered.update(part for part in ("prompt", *turns.SIDES) if encoded[part].altered)

    def check(self, max_rendered: float) -> None:
        """Check that few rows were rendered already. Raises `DataError`."""
        if self.rendered > max_rendered * self.rows:
            raise DataError(
                f"{FILE}: {self._rendered()}; use the plain turns, without a template, or raise format_pairs.max_rendered"
            )

    def lines(self) -> list[str]:
        """One line for each kind of observation."""
        lines = [f"{self._rendered()}; they become ordinary text"] if self.rendered else []
        lines += [
            f"{count} of {self.responses} responses stand inside a {block} block that they never close; add "
            f"{block[0]}/{block[1:]} to them, or set format_pairs.template_options so that the prompt does not open it"
            for block, count in self.unclosed.items()
        ]
        lines += [
            f"the chat template changes the {part} of {count} of {self.rows} rows; the changes.csv of this stage lists them"
            for part, count in self.altered.items()
        ]
        return lines

    def summary(self) -> dict[str, Any]:
        """The counts for summary.json."""
        return {
            "rendered": {"rows": self.rendered, "of": self.rows},
            "unclosed": {
                "responses": sum(self.unclosed.values()),
                "of": self.responses,
                "blocks": sorted(self.unclosed),
            },
        }

    def _rendered(self) -> str:
        return (
            f"{self.rendered} of {self.rows} rows have the marks of a chat template, as if they were rendered already "
            f"(the first: {self.first_rendered})"
        )
