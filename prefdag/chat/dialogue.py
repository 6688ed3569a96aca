"""A dialogue with one of several models: the part of it that fits into the context window, and the streamed answer."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from prefdag.lifecycle.errors import DataError

if TYPE_CHECKING:
    from prefdag.pairs.turns import Messages
    from prefdag.tokenizer.tokenizer import ChatTokenizer

Listener = Callable[[str], bool]  # takes the next piece of an answer, and returns whether to go on


class Generate(Protocol):
    """Generates answers with one model: `prefdag.text.generation.stream.stream`, bound to the model and its tokenizer."""

    def __call__(
        self, prompt_ids: Sequence[int], listener: Listener, *, max_new_tokens: int, temperature: float, seed: int
    ) -> tuple[int, bool]:
        """Pass the answer to `listener`. Returns its number of tokens, and whether the model ended it."""


@dataclass(frozen=True)
class Prompt:
    """The token ids of as much of a dialogue as fits, and how many of its oldest messages were left out."""

    ids: list[int]
    left_out: int


@dataclass(frozen=True)
class ChatModels:
    """The models to chat with: a `Generate` function by name, reference first, and the tokenizer and window they share."""

    models: Mapping[str, Generate]
    tokenizer: "ChatTokenizer"
    window: int | None  # context length in tokens; None if unbounded

    def prompt(self, messages: "Messages", max_new_tokens: int) -> Prompt:
        """Tokenize a dialogue that ends with a user message, and leave room for an answer.

        If it does not fit, its oldest turns are left out, so that it starts with a user message. A system message stays.

        Raises:
            DataError: the last message alone does not fit, or the model's template rejects the dialogue.
        """
        system = [message for message in messages[:1] if message["role"] == "system"]
        starts = [number for number, message in enumerate(messages) if message["role"] == "user"]
        room = None if self.window is None else self.window - max_new_tokens

        def ids(start: int) -> list[int]:
            return self.tokenizer.prompt([*system, *messages[start:]]).ids

        all_ids = self.tokenizer.prompt(messages).ids
        if room is None or len(all_ids) <= room:
            return Prompt(all_ids, 0)
        # Fewer turns have fewer tokens, so a binary search finds the first turn to keep.
        first = bisect_left(starts, True, key=lambda start: len(ids(start)) <= room)
        if first == len(starts):
            raise DataError(
                f"the message has {len(ids(starts[-1]))} tokens in the model's template, but an answer of {max_new_tokens} "
                f"leaves {max(room, 0)} of {self.window}; shorten the message, or ask for a shorter answer"
            )
        return Prompt(ids(starts[first]), starts[first] - len(system))
