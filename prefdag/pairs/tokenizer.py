"""Dialogues to token ids: a template around the prompt, the response apart, control tokens only where we put them.

    tokenizer = ChatTokenizer(Path("models/base"), "chat")
    prompt = tokenizer.prompt([{"role": "user", "content": "Hi!"}], max_tokens=96)
    response = tokenizer.response("Hello.", max_tokens=96)
    row = prompt.ids + response.ids          # BOS? ... "Hi!" ... "Hello." EOS

Two promises hold for every text, also for one in which somebody typed `<|im_end|>`:
a prompt never gets a second BOS in front, and a response has exactly one EOS, at its end.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from prefdag.runtime.artifacts import read_json
from prefdag.runtime.errors import DataError, ParamsError

TemplateName = Literal["chat", "instruction"]
# {"role": "system" | "user" | "assistant", "content": ...}; a user turn last.
Messages = Sequence[Mapping[str, str]]

# The instruction template of Alpaca, written as a chat template so that both kinds take one path. A system message is a
# paragraph below the preamble; earlier turns repeat the two headings.
INSTRUCTION_TEMPLATE = """\
{{- 'Below is an instruction that describes a task. Write a response that appropriately completes the request.' }}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{- '\\n\\n' + message['content'] }}
{%- elif message['role'] == 'user' %}{{- '\\n\\n### Instruction:\\n' + message['content'] }}
{%- else %}{{- '\\n\\n### Response:\\n' + message['content'] }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '\\n\\n### Response:\\n' }}{% endif %}"""

# Some templates (Llama 3, SmolLM3) write today's date into the prompt, so the same rows would have other ids tomorrow.
# A macro of that name shadows the function that they call; the day is the one that Llama 3 itself falls back on.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}\n"  # jinja drops the newline behind a tag

# Unicode noncharacters, reserved for a program's own use: absent from exchanged text, and dropped where they are not.
OPEN, CLOSE = "\ufdd0", "\ufdd1"
NO_MARKS = str.maketrans("", "", OPEN + CLOSE)
BOUNDARY = 100  # characters on either side of where a response starts: more than any token has
# Splitting at it gives text, control token, text, ...; a mark whose partner the template cut away gives None.
MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|[{OPEN}{CLOSE}]")


@dataclass(frozen=True)
class Encoded:
    """A prompt or a response as token ids, and the text that it was made of."""

    ids: list[int]
    text: str
    length: int  # tokens before the cut, BOS or EOS included

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut away. The EOS behind a cut response is ours, not its author's: do not score it."""
        return len(self.ids) < self.length


class ChatTokenizer:
    """A model folder's tokenizer (tokenizer.json, tokenizer_config.json, chat_template.jinja) under one template."""

    eos_id: int
    bos_id: int | None
    control_tokens: dict[str, str]  # eos_token and, in a model that has one, bos_token

    def __init__(self, model: Path, template: TemplateName) -> None:
        """Read the folder.

        Raises:
            DataError: a file is missing or broken, or the tokenizer has no EOS.
            ParamsError: `template` is "chat" and the model has none.
        """
        config = read_json(model / "tokenizer_config.json")
        self._tokenizer = _read_tokenizer(model / "tokenizer.json")
        eos = _control_token(self._tokenizer, model, config, "eos")
        if eos is None:
            raise DataError(f"{model}/tokenizer_config.json: eos_token: missing; name the token that ends a response")
        self.eos_id = _id(self._tokenizer, eos, model)
        bos = _control_token(self._tokenizer, model, config, "bos")
        self.bos_id = None if bos is None else _id(self._tokenizer, bos, model)
        # BOS is due where the tokenizer's own post-processor puts one in front.
        self._bos = [i for i in self._tokenizer.encode("").ids[:1] if i == self.bos_id]

        self._own = INSTRUCTION_TEMPLATE if template == "instruction" else _template(model, config)
        self._template = FIXED_DATE + self._own
        self._variables: dict[str, Any] = {"bos_token": bos or "", "eos_token": eos}  # templates write these themselves

        self.control_tokens = {name: token for name, token in self._variables.items() if token}

        # A second tokenizer, to which `<|im_end|>` is ten characters like any others.
        self._plain = Tokenizer.from_str(self._tokenizer.to_str())
        self._plain.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._control_tokens = {token.content for token in added if token.special}
        self._controls = re.compile("|".join(map(re.escape, sorted(self._control_tokens, key=len, reverse=True))))

    def prompt(self, messages: Messages, max_tokens: int | None = None) -> Encoded:
        """A dialogue in the template, up to where the answer begins. A longer one keeps its end, behind BOS if due.

        Control tokens of the template become their ids; the same strings typed in a message become ordinary tokens.

        Raises:
            DataError: the template refuses the dialogue: it knows no system message, say.
        """
        # Without typed control tokens there is one piece, so the ids are those of the rendered text by construction.
        pieces = MARKED.split(self._render([{**m, "content": self._mark(m["content"])} for m in messages]))
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if piece:
                typed = number % 2 == 1
                ids += self._text_ids(piece) if typed else self._tokenizer.encode(piece, add_special_tokens=False).ids
        return self._cut_prompt(ids, "".join(piece or "" for piece in pieces), max_tokens)

    def jinja(self) -> str:
        """The template for other programs: transformers' `apply_chat_template`, and what is built on it, gets our ids.

        They take BOS from the template alone, so one that the tokenizer is due to add is written by the template here. Like
        ours, they take a control token that was typed in a message for text only if they are asked to sanitize them.
        """
        template = self._template if "strftime_now" in self._own else self._own
        written = MARKED.sub("", self._render([{"role": "user", "content": ""}]))
        due = self._tokenizer.encode(written, add_special_tokens=False).ids[:1] != self._bos
        return "{{- bos_token }}" + template if self._bos and due else template

    def raw_prompt(self, text: str, max_tokens: int | None = None) -> Encoded:
        """Text to be continued as it stands, in no template. Cut as `prompt`.

        Never empty, since a response's first token is predicted from the token before it: empty text gives BOS, or EOS
        in a model without one.
        """
        ids = self._text_ids(text) or [self.eos_id if self.bos_id is None else self.bos_id]
        return self._cut_prompt(ids, text, max_tokens)

    def response(self, text: str, max_tokens: int | None = None) -> Encoded:
        """An answer's tokens and one EOS. A longer one keeps its beginning: `max_tokens - 1` tokens, then EOS."""
        ids = self._text_ids(text)
        kept = ids if max_tokens is None else ids[: max_tokens - 1]
        return Encoded([*kept, self.eos_id], text, len(ids) + 1)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens shown."""
        return self._plain.decode(list(ids), skip_special_tokens=False)

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text that each id adds; they join to `decode(ids)`.

        A character that several tokens spell (byte-level BPE splits UTF-8) stands with the last of them; the others add "".
        """
        stream = DecodeStream(skip_special_tokens=False)
        texts = [stream.step(self._plain, number) or "" for number in ids]
        if texts:  # what ends within a character
            texts[-1] += self.decode(ids)[len("".join(texts)) :]
        return texts

    def pieces(self, ids: Sequence[int]) -> list[tuple[str, bool]]:
        """The text of ids in pieces, each with whether it is a control token."""
        runs = itertools.groupby(ids, key=lambda number: self._tokenizer.id_to_token(number) in self._control_tokens)
        return [
            (self.decode(part), control)
            for control, run in runs
            for part in ([[number] for number in run] if control else [list(run)])
        ]

    def typed_controls(self, text: str) -> int:
        """How many control tokens somebody typed in a text; they become ordinary tokens."""
        return len(self._controls.findall(text))

    def joins(self, prompt: str, response: str) -> bool:
        """Whether prompt and response, tokenised as one text, would have had a token across the boundary, or another near it.

        Tokenised apart, as we do, the boundary is where the template says, whatever the response starts with.
        """
        # Control tokens part a text, so that what stands before the last one does not matter; far ends do not either.
        before = self._controls.split(prompt)[-1][-BOUNDARY:]
        after = response[:BOUNDARY]
        apart = [self._plain.encode(part, add_special_tokens=False).ids for part in (before, after)]
        return bool(self._plain.encode(before + after, add_special_tokens=False).ids != apart[0] + apart[1])

    def _render(self, messages: Messages) -> str:
        # Imported here, for it takes a second, and readers of images and evals import this module too.
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            return render_jinja_template(
                [[dict(message) for message in messages]],
                chat_template=self._template,
                add_generation_prompt=True,
                **self._variables,
            )[0][0]
        except TemplateError as error:
            remedy = "change the dialogue or set `format_pairs.template: instruction`"
            raise DataError(f"the model's chat template refuses this dialogue ({error}); {remedy}") from None

    def _mark(self, content: str) -> str:
        """A message with its control tokens between marks, so that they are told from the template's own."""
        return self._controls.sub(f"{OPEN}\\g<0>{CLOSE}", content.translate(NO_MARKS))

    def _text_ids(self, text: str) -> list[int]:
        """Ordinary tokens of a text, whatever it spells."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if self.eos_id in ids or self.bos_id in ids:  # a vocabulary of whole words can hold "</s>" as a word
            raise DataError(
                "the tokenizer makes BOS or EOS of plain text; remove the control token from the row's text"
            )
        return ids

    def _cut_prompt(self, ids: list[int], text: str, max_tokens: int | None) -> Encoded:
        """The last `max_tokens` of ids, behind BOS where it is due."""
        bos = self._bos
        whole = ids if ids[:1] == bos else bos + ids
        if max_tokens is None or len(whole) <= max_tokens:
            return Encoded(whole, text, len(whole))
        end = whole[len(whole) - max_tokens + len(bos) :]
        # Some templates open every turn with BOS: the cut may fall right before one.
        return Encoded(end if end[:1] == bos else bos + end, text, len(whole))


def check_window(model: Path, max_prompt_tokens: int, max_response_tokens: int) -> None:
    """That a prompt and its response fit into the positions that the model knows. Raises `ParamsError`."""
    known = positions(model)
    if known and max_prompt_tokens + max_response_tokens > known:
        raise ParamsError(
            f"params.yaml: format_pairs: max_prompt_tokens + max_response_tokens is "
            f"{max_prompt_tokens + max_response_tokens}, and the model has {known} positions; lower them"
        )


def positions(model: Path) -> int | None:
    """How many tokens the model in a folder takes, None where its configuration names no bound."""
    config = read_json(model / "config.json")
    return config.get("max_position_embeddings") or config.get("n_positions")  # GPT-2's name for it


def _template(model: Path, config: Mapping[str, Any]) -> str:
    """The model's chat template: a file of its own, or in older folders a key of tokenizer_config.json."""
    file = model / "chat_template.jinja"
    template: Any = file.read_text("utf-8") if file.exists() else config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {each["name"]: each["template"] for each in template}.get("default")
    if not template:
        remedy = "set `format_pairs.template: instruction`"
        raise ParamsError(f"params.yaml: format_pairs.template: {model} has no chat template; {remedy}")
    return str(template)


def _read_tokenizer(path: Path) -> Tokenizer:
    """tokenizer.json, with no cutting or padding of its own."""
    if not path.exists():
        raise DataError(f"{path}: not found; take a model that has one (a fast tokenizer)")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{path}: not a tokenizer ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _control_token(tokenizer: Tokenizer, model: Path, config: Mapping[str, Any], name: str) -> str | None:
    """The model's "eos" or "bos", which the tokenizer then knows as a control token; None where the model has none."""
    token: Any = config.get(f"{name}_token")
    if isinstance(token, Mapping):  # older folders
        token = token["content"]
    if token is None and (model / "config.json").exists():  # GPT-2's folder names them only there, by id
        ids = read_json(model / "config.json").get(f"{name}_token_id")
        first = ids[0] if isinstance(ids, list) else ids
        token = None if first is None else tokenizer.id_to_token(first)
    if token is None:
        return None
    added = tokenizer.get_added_tokens_decoder().get(_id(tokenizer, token, model))
    if added is None or not added.special:
        tokenizer.add_special_tokens([token])
    return str(token)


def _id(tokenizer: Tokenizer, token: str, model: Path) -> int:
    """A token's id. Raises `DataError` where the vocabulary, hence the model, does not have it."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise DataError(f"{model}/tokenizer_config.json: {token!r} is not in tokenizer.json; take matching files")
    return int(number)
