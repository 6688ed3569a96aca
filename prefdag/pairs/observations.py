"""What a user may not expect of formatted pairs, one line of the terminal each, and counts for summary.json."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefdag.lifecycle.errors import DataError
from prefdag.pairs import turns
from prefdag.tokenizer.marks import any_of

if TYPE_CHECKING:
    from prefdag.pairs.limits import Limits
    from prefdag.tokenizer.tokenizer import ChatTokenizer

FILE = "data/validated/pairs.parquet"


class Observations:
    """Counts over the rows that were added."""

    def __init__(self, turn_marks: Sequence[str]) -> None:
        """Start with no rows; `turn_marks` as the function of this name."""
        self.marks: re.Pattern[str] = any_of(turn_marks)
        self.rows = self.responses = self.rendered = 0
        self.first_rendered = ""
        self.unclosed: Counter[str] = Counter()
        self.altered: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any], encoded: Mapping[str, Any]) -> None:
        """Count a validated row and what `encoding.encode_pair` made of it."""
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


def template_writes(tokenizer: "ChatTokenizer") -> dict[str, str]:
    """What a chat template writes around every answer, as text: `before`, `after`, and the `end` of the turn."""
    affixes = tokenizer.renderer().affixes
    return {"before": affixes.before, "after": affixes.after, "end": tokenizer.decode([tokenizer.end_id])}


def turn_marks(tokenizer: "ChatTokenizer") -> list[str]:
    """Texts which show that a row was rendered already, by one of the model's templates or by another one."""
    return list(dict.fromkeys(mark for renderer in tokenizer.renderers.values() for mark in renderer.turn_marks))


def template_lines(tokenizer: "ChatTokenizer") -> list[str]:
    """What is unusual about the chat templates."""
    lines = []
    for affixes in dict.fromkeys(renderer.affixes for renderer in tokenizer.renderers.values()):
        if affixes.header:
            lines.append(
                "the chat template never marks where an answer starts: it writes "
                f"{affixes.header!r} before an answer, but not at the end of a prompt; let it do so if add_generation_prompt "
                "is set"
            )
        elif affixes.before.strip():
            lines.append(
                f"the chat template writes {affixes.before!r} before every response, so it is trained and scored; an option "
                "in format_pairs.template_options may move it into the prompt"
            )
    return lines


def cut_lines(cut: Mapping[str, float], limits: "Limits", *, is_auto: bool) -> list[str]:
    """How much was cut; `cut` has the share of the texts by part. With `is_auto`, the data chose a limit."""
    if not any(cut.values()):
        return []
    names = {"prompt": "prompts", "chosen": "chosen responses", "rejected": "rejected responses"}
    shares = ", ".join(f"{cut[part]:.1%} of the {name}" for part, name in names.items())
    remedy = "raise format_pairs.max_prompt_tokens and max_response_tokens, or set them to auto"
    if is_auto:
        remedy = (
            "raise format_pairs.max_auto_tokens, or set numbers instead of auto, which holds 95% of the rows at most"
        )
    return [
        f"cut: {shares} (limits: {limits.max_prompt_tokens} tokens for a prompt, {limits.max_response_tokens} for a "
        f"response); to keep more, {remedy}"
    ]
