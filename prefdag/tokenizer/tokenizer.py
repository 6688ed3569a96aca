"""Tokenise dialogues: a template around the prompt, the response after it, and no control tokens but the template's own.

    tokenizer = ChatTokenizer(Path("models/base"), "chat")
    dialogue = tokenizer.dialogue([{"role": "user", "content": "Hi!"}])
    prompt = dialogue.prompt(max_tokens=96)
    response = dialogue.response({"role": "assistant", "content": "Hello."}, max_tokens=96)
    row = prompt.ids + response.ids          # BOS? ... "Hi!" ... "Hello." <|im_end|>

Two things hold for every text, even if somebody typed `<|im_end|>` in it: a prompt never starts with two BOS, and a response
has exactly one end of turn, at its end. It is the token that the template writes after an answer, or EOS if it writes none.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json
from prefdag.tokenizer.dialogue import Dialogue, Encoded
from prefdag.tokenizer.files import control_token, read_tokenizer, stop_ids_of, token_id
from prefdag.tokenizer.marks import MARKED, any_of
from prefdag.tokenizer.rendering import Renderer
from prefdag.tokenizer.template import (
    DEFAULT,
    INSTRUCTION_TEMPLATE,
    TOOL_USE,
    ChatTemplate,
    TemplateName,
    Tools,
    check_options,
    either,
    read_templates,
)

if TYPE_CHECKING:
    from prefdag.pairs.turns import Messages

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
BOUNDARY = 100  # characters on either side of the start of a response; longer than any token


class ChatTokenizer:
    """A model folder's tokenizer (tokenizer.json, tokenizer_config.json, chat_template.jinja) with its chat template.

    If the model has another template for dialogues with tools, that one is used for them, as in transformers.
    """

    eos_id: int
    bos_id: int | None
    end_id: int
    stop_ids: tuple[int, ...]
    control_tokens: dict[str, str]  # eos_token and, if the model has one, bos_token

    def __init__(self, model: Path, template: TemplateName, options: Mapping[str, Any] = NO_OPTIONS) -> None:
        """Read the folder.

        Args:
            options: variables of the template, such as enable_thinking.

        Raises:
            DataError: a file is missing or broken, or the tokenizer has no EOS.
            ParamsError: `template` is "chat" and the model has none, or it does not mention an option.
        """
        config = read_json(model / "tokenizer_config.json")
        self._tokenizer = read_tokenizer(model / "tokenizer.json")
        eos = control_token(self._tokenizer, model, config, "eos")
        if eos is None:
            raise DataError(
                f"{model}/tokenizer_config.json: eos_token: missing; set it to the token that ends a response"
            )
        self.eos_id = token_id(self._tokenizer, eos, model)
        bos = control_token(self._tokenizer, model, config, "bos")
        self.bos_id = None if bos is None else token_id(self._tokenizer, bos, model)
        # A prompt gets a BOS if the tokenizer's own post-processor adds one.
        self._bos = [i for i in self._tokenizer.encode("").ids[:1] if i == self.bos_id]

        sources = {DEFAULT: INSTRUCTION_TEMPLATE} if template == "instruction" else read_templates(model, config)
        tokens = {"bos_token": bos or "", "eos_token": eos}  # templates insert these themselves
        self.control_tokens = {name: token for name, token in tokens.items() if token}

        added = {token for token in self._added() if token.strip()}
        # Only added tokens, since a configuration may name an ordinary one: transformers' default is often 2, whatever it is.
        listed = [self._tokenizer.id_to_token(number) for number in stop_ids_of(model)]
        stops = [eos, *(token for token in listed if token in added)]
        templates = {
            name: ChatTemplate(sources[name], tokens, options) for name in (DEFAULT, TOOL_USE) if name in sources
        }
        check_options(templates.values(), options)
        plain = {name: Renderer(each, any_of(()), any_of(added), stops) for name, each in templates.items()}
        ends = [each.affixes.end or eos for each in plain.values()]
        for end in ends:
            if end not in self._added(special=True):
                self._tokenizer.add_special_tokens([end])
        # The token that ends the assistant's turn: what the template writes after its text, or EOS if it writes none.
        self.end_id, *_ = end_ids = [self.token_id(end) for end in ends]
        # Where generation stops.
        self.stop_ids = tuple(dict.fromkeys([*end_ids, self.eos_id, *map(self.token_id, stops)]))

        self._ends = {self.eos_id, self.bos_id, *end_ids}

        # A second tokenizer, to which `<|im_end|>` is ordinary text.
        self._plain = Tokenizer.from_str(self._tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self._control_tokens = self._added(special=True)
        self._controls = any_of(self._control_tokens)
        self.renderers = {name: replace(each, controls=self._controls) for name, each in plain.items()}
        # Both responses of a row follow the same text, which is often the same in all rows.
        self._context_ids = lru_cache(maxsize=2)(lambda text: _ids(self._tokenizer, text))

    def renderer(self, tools: Tools = None) -> Renderer:
        """What renders dialogues with these tools."""
        return self.renderers[TOOL_USE if tools is not None and TOOL_USE in self.renderers else DEFAULT]

    def dialogue(self, messages: "Messages", tools: Tools = None) -> Dialogue:
        """A dialogue that waits for an answer. Raises `DataError` as `Renderer.prompt`."""
        renderer = self.renderer(tools)
        turns, marked_tools = renderer.mark(list(messages)), renderer.mark(tools)
        return Dialogue(self, turns, marked_tools, *renderer.prompt(turns, marked_tools))

    def prompt(self, messages: "Messages", max_tokens: int | None = None, tools: Tools = None) -> Encoded:
        """A dialogue in the template, up to the start of the answer. If it is too long, its end is kept, after BOS if needed.

        Control tokens of the template get their ids; the same strings typed in a message become ordinary tokens.

        Raises:
            DataError: the template rejects the dialogue, for example because it does not support system messages, or it
                ignores a part of it.
        """
        return self.dialogue(messages, tools).prompt(max_tokens)

    def jinja(self) -> str:
        """The template for other programs. transformers' `apply_chat_template` and what is built on it get the same ids.

        They take BOS only from the template, so this template adds the BOS that the tokenizer would. They treat a control
        token that was typed in a message as text, as this class does, only if they are asked to sanitize messages.
        """
        sources = {name: self._jinja(renderer) for name, renderer in self.renderers.items()}
        return either(sources[TOOL_USE], sources[DEFAULT]) if TOOL_USE in sources else sources[DEFAULT]

    def raw_prompt(self, text: str, max_tokens: int | None = None) -> Encoded:
        """Raw text to be continued, without a template. It is cut as in `prompt`.

        The ids are never empty, since a response's first token is predicted from the token before it: empty text gives BOS,
        or EOS if the model has no BOS.
        """
        ids = self._text_ids(text) or [self.eos_id if self.bos_id is None else self.bos_id]
        return self.cut_prompt(ids, text, max_tokens)

    def response(self, text: str, max_tokens: int | None = None) -> Encoded:
        """The tokens of a plain text and one end of turn, without what a template may write around a text.

        If it is too long, the first `max_tokens - 1` tokens are kept, then the end.
        """
        return self.cut_response(self._text_ids(text), text, self.end_id, max_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, including control tokens."""
        return self._plain.decode(list(ids), skip_special_tokens=False)

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text that each id adds. Joined, they are `decode(ids)`.

        A character may consist of several tokens, since byte-level BPE splits UTF-8. The last of them gets it, the others "".
        """
        stream = DecodeStream(skip_special_tokens=False)
        texts = [stream.step(self._plain, number) or "" for number in ids]
        if texts:  # the ids may end inside a character
            texts[-1] += self.decode(ids)[len("".join(texts)) :]
        return texts

    def pieces(self, ids: Sequence[int]) -> list[tuple[str, bool]]:
        """The text of ids in pieces, each with a flag that is true for a control token."""
        runs = itertools.groupby(ids, key=lambda number: self._tokenizer.id_to_token(number) in self._control_tokens)
        return [
            (self.decode(part), control)
            for control, run in runs
            for part in ([[number] for number in run] if control else [list(run)])
        ]

    def typed_controls(self, text: str) -> int:
        """The number of control tokens typed in a text; they become ordinary tokens."""
        return len(self._controls.findall(text))

    def joins(self, prompt: str, response: str) -> bool:
        """Whether tokenising prompt and response as one text would give other tokens at their boundary.

        We tokenise them separately, so that the boundary is always where the template ends.
        """
        # Control tokens separate a text, so text before the last one does not matter, nor does text far from the boundary.
        before = self._controls.split(prompt)[-1][-BOUNDARY:]
        after = response[:BOUNDARY]
        ids: list[int] = _ids(self._plain, before)
        return bool(_ids(self._plain, before + after)[: len(ids)] != ids)

    def token_id(self, token: str) -> int:
        """The id of a token of the vocabulary."""
        number = self._tokenizer.token_to_id(token)
        assert number is not None, token
        return int(number)

    def prompt_ids(self, marked: str) -> list[int]:
        """The tokens of a prompt in which typed control tokens are marked."""
        # Without typed control tokens there is one piece, so the ids are exactly those of the rendered text.
        ids: list[int] = []
        for number, piece in enumerate(MARKED.split(marked)):
            if piece:
                typed = number % 2 == 1
                ids += self._text_ids(piece) if typed else _ids(self._tokenizer, piece)
        return ids

    def response_ids(self, prompt: str, marked: str) -> list[int]:
        """The tokens of a response as they follow a prompt, both marked.

        They are those of the joined text, unless it has a token across the boundary: then the response is tokenised alone. Some
        tokenizers put a space before a text, so that a response alone would start with a space that a model never writes.
        """
        if MARKED.search(marked):
            has_controls = self._controls.search(MARKED.sub("", marked))
            return self.prompt_ids(marked) if has_controls else self._text_ids(MARKED.sub(r"\1", marked))
        context = self._tail(prompt)
        before = self._context_ids(context)
        joined = _ids(self._tokenizer, context + marked)
        return list(joined[len(before) :]) if joined[: len(before)] == before else self.prompt_ids(marked)

    def cut_prompt(self, ids: list[int], text: str, max_tokens: int | None, altered: str = "") -> Encoded:
        """The last `max_tokens` of ids, after BOS if the prompt needs one."""
        bos = self._bos
        whole = ids if ids[:1] == bos else bos + ids
        if max_tokens is None or len(whole) <= max_tokens:
            return Encoded(whole, text, len(whole), altered)
        end = whole[len(whole) - max_tokens + len(bos) :]
        # Some templates start every turn with BOS, so the cut may be right before one.
        return Encoded(end if end[:1] == bos else bos + end, text, len(whole), altered)

    def cut_response(
        self, ids: list[int], text: str, end_id: int, max_tokens: int | None, altered: str = ""
    ) -> Encoded:
        """The first `max_tokens - 1` of ids, and the end of the turn."""
        kept = ids if max_tokens is None else ids[: max_tokens - 1]
        return Encoded([*kept, end_id], text, len(ids) + 1, altered)

    def _jinja(self, renderer: Renderer) -> str:
        """The template of one renderer for other programs."""
        written = MARKED.sub("", renderer.prompt([{"role": "user", "content": ""}], None)[0])
        missing = _ids(self._tokenizer, written)[:1] != self._bos
        template = renderer.template.jinja()
        return "{{- bos_token }}" + template if self._bos and missing else template

    def _added(self, *, special: bool = False) -> set[str]:
        """The tokens that were added to the vocabulary; with `special`, only the control tokens."""
        tokens = self._tokenizer.get_added_tokens_decoder().values()
        return {token.content for token in tokens if token.special or not special}

    def _tail(self, prompt: str) -> str:
        """A marked prompt from the template's last control token on, which is all that can change the tokens after it."""
        last = MARKED.split(prompt)[-1]
        places = [match.start() for match in self._controls.finditer(last)]
        return last[places[-1] :] if places else last

    def _text_ids(self, text: str) -> list[int]:
        """The ordinary tokens of a text, even if it spells control tokens."""
        ids: list[int] = _ids(self._plain, text)
        if self._ends & set(ids):  # a vocabulary of whole words may have "</s>" as a word
            raise DataError(
                "the tokenizer turns plain text into BOS or EOS; remove the control token from the row's text"
            )
        return ids


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text. The method for batches is the one that can leave out their places in the text, which take time."""
    ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids
