"""What a chat template makes of a dialogue: the prompt, the response after it, and the token that ends the response.

All texts are marked: control tokens that somebody typed stand between two marks, which tells them from the template's own.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prefdag.lifecycle.errors import DataError
from prefdag.tokenizer.marks import MARKED, marked
from prefdag.tokenizer.template import ChatTemplate, Tools, with_text_arguments, without_content

if TYPE_CHECKING:
    from prefdag.pairs.turns import Messages

# Texts that no template changes or writes itself.
QUESTION, ANSWER = "prefdagquestion", "prefdaganswer"
ASKED = [{"role": "user", "content": QUESTION}]
# An opening tag at the end of a prompt: <think> or [THINK], with the white space after it.
OPEN_BLOCK = re.compile(r"(<[A-Za-z]\w*>|\[[A-Z_]+\])(\s*)$")
EXTRAS = ("tool_calls", "reasoning_content")  # of a turn: parts of its text, so a template must not ignore them
# Opening tags of the turns themselves in formats that models or their makers use. See `Renderer.turn_marks`.
FOREIGN_MARKS = (
    *("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|start_of_role|>", "[INST]"),
    *("<|user|>", "<|assistant|>", "<|User|>", "<|Assistant|>", "<｜User｜>", "<｜Assistant｜>"),
)


@dataclass(frozen=True)
class Written:
    """A response as the template writes it, up to the token that ends it."""

    text: str  # marked
    end: str | None  # None: the template writes no such token
    altered: str = ""  # what the template changes in the response's own text


@dataclass(frozen=True)
class Affixes:
    """What the template writes around an answer."""

    header: str = ""  # before it, if the template has no generation prompt: not a part of the response
    before: str = ""
    after: str = ""
    following: str | None = None  # the first token after it that is no ordinary text
    end: str | None = None  # the same, unless it starts the next turn


@dataclass(frozen=True)
class Renderer:
    """Renders dialogues with one template, for a tokenizer with these tokens."""

    template: ChatTemplate
    controls: re.Pattern[str]  # the tokenizer's control tokens
    added: re.Pattern[str]  # its control tokens and the other tokens that were added to the vocabulary
    stops: Sequence[str]  # tokens at which the model stops, beside the one that the template writes

    def mark(self, value: Any) -> Any:
        """A value with marks around the control tokens in its texts."""
        return marked(value, self.controls)

    def prompt(self, messages: "Messages", tools: Tools) -> tuple[str, str]:
        """A marked dialogue up to the start of the answer, and what the template leaves out of it on purpose, in words.

        Raises:
            DataError: the template rejects it, or ignores the tools, a turn, or a turn's tool calls or reasoning.
        """
        prompt = self._text(messages, tools, generation_prompt=True)

        def ignored(changed: "Messages", tools: Tools) -> bool:
            try:
                return self._text(changed, tools, generation_prompt=True) == prompt
            except DataError:
                return False

        if tools and ignored(messages, None):
            raise _ignores("tools")
        dropped = []
        for number, turn in enumerate(messages):
            for key in EXTRAS:
                if turn.get(key) and ignored(_replaced(messages, number, _without(turn, key)), tools):
                    # Some templates leave out the reasoning of all turns but the last.
                    if key == "tool_calls" or not self.reads_reasoning:
                        raise _ignores(f"prompt[{number}].{key}")
                    dropped.append(f"the reasoning of turn {number}")
            content = turn["content"].strip()
            if content and content not in prompt:
                if ignored(_replaced(messages, number, dict(turn) | {"content": ANSWER}), tools):
                    raise _ignores(f"prompt[{number}].content (role {turn['role']})")
                dropped.append(f"the text of turn {number}")
        return prompt, f"the template leaves out or changes {', '.join(dropped)}" if dropped else ""

    def form(self, messages: "Messages", tools: Tools) -> list[dict[str, Any]]:
        """A dialogue with its calls in the form that the template expects."""
        return [dict(turn) for turn in self._form(messages, tools, generation_prompt=True)[1]]

    def response(self, prompt: str, messages: "Messages", turn: Mapping[str, Any], tools: Tools) -> Written:
        """An answer as the template writes it after `prompt`, the text of the marked `messages` and `tools`.

        If the template starts it in another way than its own prompt does, or loses some of its text, then the text is used as
        it is. An opening tag that the prompt ends with is not repeated.

        Raises:
            DataError: the template ignores the answer's tool calls or reasoning, or cannot write them after the prompt.
        """
        answer = self.mark(dict(turn))
        extras = [key for key in EXTRAS if answer.get(key)]
        if self.affixes.header and not extras:
            return Written(answer["content"], self.affixes.end)
        whole = self._tried([*messages, answer], tools)
        for key in extras:
            if whole is not None and whole == self._tried([*messages, _without(answer, key)], tools):
                raise _ignores(key)
        content = self._once(prompt, answer["content"])
        texts = [content, answer.get("reasoning_content") or ""]
        for start, text in self._attempts(prompt, whole, answer, tools):
            if start is None or text is None or not text.startswith(start):
                continue
            written = text[len(start) :].removeprefix(self.affixes.header)
            if all(_survives(part, written) for part in texts):
                return self._to_end(self._once(prompt, written), answer)
        if extras:
            raise DataError(
                "the chat template loses a part of it, or starts it in another way than its generation prompt "
                f"({self.start!r}); change the row, or set format_pairs.template_options"
            )
        # What the template writes before a text may be the end of the block, which this text has itself.
        before = "" if self.open_block and _closing(self.open_block) in content else self.affixes.before
        return Written(f"{before}{content}{self.affixes.after}", self.affixes.end)

    def unclosed(self, prompt: str, response: str) -> str | None:
        """The opening tag of a block in which a whole response stands, since it never closes it."""
        match = OPEN_BLOCK.search(prompt) if self.open_block else None
        if match is None and (own := re.match(r"\s*(<[A-Za-z]\w*>)", response)) and own[1] in self.template.source:
            match = own
        return None if match is None or _closing(match[1]) in response else match[1]

    @cached_property
    def affixes(self) -> Affixes:
        """Found by rendering a dialogue that ends with an answer."""
        prompt = self._tried(ASKED, None, generation_prompt=True)
        whole = self._tried([*ASKED, _answer(ANSWER)], None)
        if prompt is None or whole is None or ANSWER not in whole:
            return Affixes()
        before, _, rest = whole.rpartition(ANSWER)
        following = self.added.search(rest)
        after = rest[: following.start()] if following else rest.rstrip()
        token = following[0] if following else None
        # Some templates always end with the start of the next answer.
        starts = [match[0] for match in self.added.finditer(before)][-1:] == [token]
        lead = before[len(prompt) :] if before.startswith(prompt) else ""
        is_header = bool(lead.strip()) and "add_generation_prompt" not in self.template.source
        end = None if starts else token
        return Affixes(lead, "", "", token, end) if is_header else Affixes("", lead, after, token, end)

    @cached_property
    def start(self) -> str:
        """What the template writes between a question and the start of its answer."""
        return (self._tried(ASKED, None, generation_prompt=True) or "").rpartition(QUESTION)[2]

    @cached_property
    def open_block(self) -> str | None:
        """The opening tag of the block that every prompt leaves open, such as <think>."""
        block = OPEN_BLOCK.search(self.start)
        return block[1] if block else None

    @cached_property
    def reads_reasoning(self) -> bool:
        """Whether the template writes the reasoning of the last answer."""
        answer = _answer(ANSWER) | {"reasoning_content": QUESTION}
        return QUESTION in (self._tried([{"role": "user", "content": "a"}, answer], None) or "")

    @cached_property
    def turn_marks(self) -> list[str]:
        """Texts which show that a row was rendered already, by this template or by another one."""
        parts = re.split(
            f"{QUESTION}|{ANSWER}",
            self._tried([*ASKED, _answer(ANSWER), *ASKED], None, generation_prompt=True) or "",
        )
        own = [token for part in parts for token in self.controls.findall(part)]
        if len(re.findall(r"\w", self.start)) >= 4:  # "### Response:" or "[/INST]", but not "]"
            own.append(self.start.strip())
        return list(dict.fromkeys([*own, *FOREIGN_MARKS]))

    def _attempts(
        self, prompt: str, whole: str | None, answer: Mapping[str, Any], tools: Tools
    ) -> Iterator[tuple[str | None, str | None]]:
        """Prompts and dialogues that start with them: the row's own, then short ones.

        A template may write an answer in another way if the dialogue before it has, for example, a system message.
        """
        yield prompt, whole
        for offered in [tools, None] if tools else [None]:
            yield self._tried(ASKED, offered, generation_prompt=True), self._tried([*ASKED, answer], offered)

    def _to_end(self, written: str, turn: Mapping[str, Any]) -> Written:
        """Cut before the first token after the text at which the model stops."""
        content = turn["content"]
        text = content if content in written else content.strip()
        stops = [stop for stop in (self.affixes.following, *self.stops) if stop]
        end = None
        if stops:
            # From the text's first place on: its letters may also be in the end, as "end" is in <|im_end|>.
            either = re.compile(f"{MARKED.pattern}|(?P<end>{'|'.join(map(re.escape, stops))})")
            end = next((match for match in either.finditer(written, max(0, written.find(text))) if match["end"]), None)
        if end:
            rest = written[: end.start()]
        else:  # without white space that the template adds between turns
            place = written.rfind(text) + len(text) if text in written else 0
            rest = written.rstrip() if written[place:].strip() else written[:place]
        around = self.affixes
        plain = (f"{around.before}{content}{around.after}", f"{content}{around.after}", content)
        is_changed = rest not in plain and not any(turn.get(key) for key in EXTRAS)
        altered = "the template changes its text or its white space" if is_changed else ""
        token = end["end"] if end else None
        is_end = token == self.affixes.end or token in self.stops
        return Written(rest, token if is_end else None, altered)

    def _once(self, prompt: str, text: str) -> str:
        """A response without the opening tag that its prompt already ends with."""
        block = OPEN_BLOCK.search(prompt) if self.open_block else None
        if block is None or not text.lstrip().startswith(block[1]):
            return text
        return text.lstrip().removeprefix(block[1]).removeprefix(block[2])

    def _tried(self, messages: "Messages", tools: Tools, *, generation_prompt: bool = False) -> str | None:
        """A dialogue; None if the template rejects it."""
        try:
            return self._text(messages, tools, generation_prompt=generation_prompt)
        except DataError:
            return None

    def _text(self, messages: "Messages", tools: Tools, *, generation_prompt: bool) -> str:
        """A dialogue in its form for this template."""
        return self._form(messages, tools, generation_prompt=generation_prompt)[0]

    def _form(self, messages: "Messages", tools: Tools, *, generation_prompt: bool) -> tuple[str, "Messages"]:
        """Templates want calls in different forms, so the first form in which they are written is used."""
        names = [call["function"]["name"] for turn in messages for call in turn.get("tool_calls") or ()]
        texts: list[tuple[str, Messages]] = []
        refusal: DataError | None = None
        for form in (messages, with_text_arguments(messages), without_content(messages)) if names else (messages,):
            try:
                text = self.template.render(form, tools, generation_prompt=generation_prompt)
            except DataError as error:
                refusal = refusal or error
                continue
            if all(name in text for name in names) and not _has_python(form, text):
                return text, form
            texts.append((text, form))
        if refusal and not texts:
            raise refusal
        return texts[0]


def _answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _closing(tag: str) -> str:
    """</think> for <think>, [/THINK] for [THINK]."""
    return f"{tag[0]}/{tag[1:]}"


def _replaced(messages: "Messages", number: int, turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*messages[:number], turn, *messages[number + 1 :]]


def _without(turn: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in turn.items() if name != key}


def _has_python(messages: "Messages", text: str) -> bool:
    """Whether a template wrote the arguments of a call as Python does, {'a': 1}, since it expects text."""
    calls = [call for turn in messages for call in turn.get("tool_calls") or ()]
    arguments = [call["function"].get("arguments") for call in calls]
    return any(isinstance(each, Mapping) and each and str(each) in text for each in arguments)


def _survives(text: str, written: str) -> bool:
    """Whether nothing of a text is lost but white space."""
    return text in written or "".join(text.split()) in "".join(written.split())


def _ignores(what: str) -> DataError:
    return DataError(
        f"{what}: the chat template ignores it, so the model would never read it; "
        "remove it from the rows, or use a model whose template reads it"
    )
