"""A dialogue in a chat template, its prompt and the responses that may follow it as token ids."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefdag.tokenizer.marks import MARKED

if TYPE_CHECKING:
    from prefdag.pairs.turns import Messages
    from prefdag.tokenizer.rendering import Renderer
    from prefdag.tokenizer.template import Tools
    from prefdag.tokenizer.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class Encoded:
    """A prompt or a response as token ids, with its text."""

    ids: list[int]
    text: str
    length: int  # tokens before the cut, including BOS or the end of the turn
    altered: str = ""  # what the template changes in the row's own text, in words

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut off. The end after a cut response is ours, not the author's: do not score it."""
        return len(self.ids) < self.length


@dataclass(frozen=True)
class Dialogue:
    """A dialogue in the template, and the answers that may follow it."""

    tokenizer: "ChatTokenizer"
    messages: "Messages"  # marked, as the tools and the text
    tools: "Tools"
    text: str  # up to the start of the answer
    altered: str

    def prompt(self, max_tokens: int | None = None) -> Encoded:
        """The dialogue up to the start of the answer. If it is too long, its end is kept, after BOS if needed."""
        text = MARKED.sub(r"\1", self.text)
        return self.tokenizer.cut_prompt(self.tokenizer.prompt_ids(self.text), text, max_tokens, self.altered)

    def response(self, turn: Mapping[str, Any], max_tokens: int | None = None) -> Encoded:
        """What the model has to say after the prompt: an answer as the template writes it, and the end of the turn.

        If it is too long, the first `max_tokens - 1` tokens are kept, then the end.

        Raises:
            DataError: as `Renderer.response`.
        """
        written = self._renderer.response(self.text, self.messages, turn, self.tools)
        end_id = self.tokenizer.end_id if written.end is None else self.tokenizer.token_id(written.end)
        ids = self.tokenizer.response_ids(self.text, written.text)
        return self.tokenizer.cut_response(ids, MARKED.sub(r"\1", written.text), end_id, max_tokens, written.altered)

    def unclosed(self, response: Encoded) -> str | None:
        """The opening tag of a block in which a whole response stands, since it never closes it."""
        return self._renderer.unclosed(self.text, response.text)

    @property
    def _renderer(self) -> "Renderer":
        return self.tokenizer.renderer(self.tools)
