"""A dialogue with one of several models: what of it fits into the model's window, and the answer as it is made."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from prefdag.runtime.errors import DataError

if TYPE_CHECKING:
    from prefdag.pairs.tokenizer import ChatTokenizer, Messages

Listener = Callable[[str], bool]  # takes the next piece of an answer, and says whether to go on


class Generate(Protocol):
    """A model: `prefdag.text.generation.stream.stream` with model and tokenizer filled in."""

    def __call__(
        self, prompt_ids: Sequence[int], listener: Listener, *, max_new_tokens: int, temperature: float, seed: int
    ) -> tuple[int, bool]:
        """Tell `listener` the answer. Returns how many tokens it has, and whether the model ended it."""


@dataclass(frozen=True)
class Prompt:
    """Token ids of as much of a dialogue as fits, and how many of its oldest messages were left out."""

    ids: list[int]
    left_out: int


@dataclass(frozen=True)
class ChatModels:
    """The models to talk to by name, reference first, the tokenizer of all of them, and how many tokens they take."""

    models: Mapping[str, Generate]
    tokenizer: "ChatTokenizer"
    positions: int | None

    def prompt(self, messages: "Messages", max_new_tokens: int) -> Prompt:
        """A dialogue that ends with a user's message, as token ids that leave room for an answer.

        What does not fit loses its oldest turns, whole ones, up to a user's message; a system message stays.

        Raises:
            DataError: the last message alone does not fit, or the model's template refuses the dialogue.
        """
        system = [message for message in messages[:1] if message["role"] == "system"]
        starts = [number for number, message in enumerate(messages) if message["role"] == "user"]
        room = None if self.positions is None else self.positions - max_new_tokens

        def ids(start: int) -> list[int]:
            return self.tokenizer.prompt([*system, *messages[start:]]).ids

        whole = self.tokenizer.prompt(messages).ids
        if room is None or len(whole) <= room:
            return Prompt(whole, 0)
        # The fewer turns, the fewer tokens: no need to tokenise the dialogue once for every turn.
        first = bisect_left(starts, True, key=lambda start: len(ids(start)) <= room)
        if first == len(starts):
            raise DataError(
                f"the message has {len(ids(starts[-1]))} tokens in the model's template, and {max(room, 0)} are left of "
                f"{self.positions} beside an answer of {max_new_tokens}; shorten it, or ask for a shorter answer"
            )
        return Prompt(ids(starts[first]), starts[first] - len(system))
