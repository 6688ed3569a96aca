"""Tokenise dialogues: a template around the prompt, the response separately, and no control tokens but our own.

    tokenizer = ChatTokenizer(Path("models/base"), "chat")
    prompt = tokenizer.prompt([{"role": "user", "content": "Hi!"}], max_tokens=96)
    response = tokenizer.response("Hello.", max_tokens=96)
    row = prompt.ids + response.ids          # BOS? ... "Hi!" ... "Hello." EOS

Two things hold for every text, even if somebody typed `<|im_end|>` in it: a prompt never starts with two BOS, and a response
has exactly one EOS, at its end.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.runtime.artifacts import read_json

TemplateName = Literal["chat", "instruction"]
# {"role": "system" | "user" | "assistant", "content": ...}; the last turn is the user's.
Messages = Sequence[Mapping[str, str]]

# Alpaca's instruction template, as a chat template, so that both kinds use the same code. A system message is a paragraph
# after the preamble; earlier turns repeat the two headings.
INSTRUCTION_TEMPLATE = """\
{{- 'Below is an instruction that describes a task. Write a response that appropriately completes the request.' }}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{- '\\n\\n' + message['content'] }}
{%- elif message['role'] == 'user' %}{{- '\\n\\n### Instruction:\\n' + message['content'] }}
{%- else %}{{- '\\n\\n### Response:\\n' + message['content'] }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '\\n\\n### Response:\\n' }}{% endif %}"""

# Some templates (Llama 3, SmolLM3) put today's date into the prompt, so that the same rows would get other ids tomorrow.
# A macro of the same name shadows the function that they call. The date is the default of Llama 3's own template.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}\n"  # jinja drops the newline after a tag

# Unicode noncharacters, which are reserved for a program's internal use. Texts should not have them; if so, they are removed.
OPEN, CLOSE = "\ufdd0", "\ufdd1"
NO_MARKS = str.maketrans("", "", OPEN + CLOSE)
BOUNDARY = 100  # characters on either side of the start of a response; longer than any token
# Splitting by it gives text, control token, text, ...; or None for a mark whose partner the template removed.
MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|[{OPEN}{CLOSE}]")


@dataclass(frozen=True)
class Encoded:
    """A prompt or a response as token ids, with its text."""

    ids: list[int]
    text: str
    length: int  # tokens before the cut, including BOS or EOS

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut off. The EOS after a cut response is ours, not the author's: do not score it."""
        return len(self.ids) < self.length


class ChatTokenizer:
    """A model folder's tokenizer (tokenizer.json, tokenizer_config.json, chat_template.jinja) under one template."""

    eos_id: int
    bos_id: int | None
    control_tokens: dict[str, str]  # eos_token and, if the model has one, bos_token

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
            raise DataError(
                f"{model}/tokenizer_config.json: eos_token: missing; set it to the token that ends a response"
            )
        self.eos_id = _id(self._tokenizer, eos, model)
        bos = _control_token(self._tokenizer, model, config, "bos")
        self.bos_id = None if bos is None else _id(self._tokenizer, bos, model)
        # A prompt gets a BOS if the tokenizer's own post-processor adds one.
        self._bos = [i for i in self._tokenizer.encode("").ids[:1] if i == self.bos_id]

        self._own = INSTRUCTION_TEMPLATE if template == "instruction" else _template(model, config)
        self._template = FIXED_DATE + self._own
        self._variables: dict[str, Any] = {
            "bos_token": bos or "",
            "eos_token": eos,
        }  # templates insert these themselves

        self.control_tokens = {name: token for name, token in self._variables.items() if token}

        # A second tokenizer, to which `<|im_end|>` is ordinary text.
        self._plain = Tokenizer.from_str(self._tokenizer.to_str())
        self._plain.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._control_tokens = {token.content for token in added if token.special}
        self._controls = re.compile("|".join(map(re.escape, sorted(self._control_tokens, key=len, reverse=True))))

    def prompt(self, messages: Messages, max_tokens: int | None = None) -> Encoded:
        """A dialogue in the template, up to the start of the answer. If it is too long, its end is kept, after BOS if needed.

        Control tokens of the template get their ids; the same strings typed in a message become ordinary tokens.

        Raises:
            DataError: the template rejects the dialogue, for example because it does not support system messages.
        """
        # Without typed control tokens there is one piece, so the ids are exactly those of the rendered text.
        pieces = MARKED.split(self._render([{**m, "content": self._mark(m["content"])} for m in messages]))
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if piece:
                typed = number % 2 == 1
                ids += self._text_ids(piece) if typed else self._tokenizer.encode(piece, add_special_tokens=False).ids
        return self._cut_prompt(ids, "".join(piece or "" for piece in pieces), max_tokens)

    def jinja(self) -> str:
        """The template for other programs. transformers' `apply_chat_template` and what is built on it get the same ids.

        They take BOS only from the template, so this template adds the BOS that the tokenizer would. They treat a control
        token that was typed in a message as text, as this class does, only if they are asked to sanitize messages.
        """
        template = self._template if "strftime_now" in self._own else self._own
        written = MARKED.sub("", self._render([{"role": "user", "content": ""}]))
        missing = self._tokenizer.encode(written, add_special_tokens=False).ids[:1] != self._bos
        return "{{- bos_token }}" + template if self._bos and missing else template

    def raw_prompt(self, text: str, max_tokens: int | None = None) -> Encoded:
        """Raw text to be continued, without a template. It is cut as in `prompt`.

        The ids are never empty, since a response's first token is predicted from the token before it: empty text gives BOS,
        or EOS if the model has no BOS.
        """
        ids = self._text_ids(text) or [self.eos_id if self.bos_id is None else self.bos_id]
        return self._cut_prompt(ids, text, max_tokens)

    def response(self, text: str, max_tokens: int | None = None) -> Encoded:
        """The tokens of a response and one EOS. If it is too long, the first `max_tokens - 1` tokens are kept, then EOS."""
        ids = self._text_ids(text)
        kept = ids if max_tokens is None else ids[: max_tokens - 1]
        return Encoded([*kept, self.eos_id], text, len(ids) + 1)

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
        separate = [self._plain.encode(part, add_special_tokens=False).ids for part in (before, after)]
        return bool(self._plain.encode(before + after, add_special_tokens=False).ids != separate[0] + separate[1])

    def _render(self, messages: Messages) -> str:
        # Imported here because it takes a second, and the readers of images and evals import this module too.
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
            raise DataError(f"the model's chat template rejects this dialogue ({error}); {remedy}") from None

    def _mark(self, content: str) -> str:
        """A message with marks around its control tokens, which distinguish them from the template's own."""
        return self._controls.sub(f"{OPEN}\\g<0>{CLOSE}", content.translate(NO_MARKS))

    def _text_ids(self, text: str) -> list[int]:
        """The ordinary tokens of a text, even if it spells control tokens."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if self.eos_id in ids or self.bos_id in ids:  # a vocabulary of whole words may have "</s>" as a word
            raise DataError(
                "the tokenizer turns plain text into BOS or EOS; remove the control token from the row's text"
            )
        return ids

    def _cut_prompt(self, ids: list[int], text: str, max_tokens: int | None) -> Encoded:
        """The last `max_tokens` of ids, after BOS if the prompt needs one."""
        bos = self._bos
        whole = ids if ids[:1] == bos else bos + ids
        if max_tokens is None or len(whole) <= max_tokens:
            return Encoded(whole, text, len(whole))
        end = whole[len(whole) - max_tokens + len(bos) :]
        # Some templates start every turn with BOS, so the cut may be right before one.
        return Encoded(end if end[:1] == bos else bos + end, text, len(whole))


def check_window(model: Path, max_prompt_tokens: int, max_response_tokens: int) -> None:
    """Check that a prompt and its response fit into the model's context window. Raises `ParamsError`."""
    known = positions(model)
    if known and max_prompt_tokens + max_response_tokens > known:
        raise ParamsError(
            f"params.yaml: format_pairs: max_prompt_tokens + max_response_tokens is "
            f"{max_prompt_tokens + max_response_tokens}, but the model has {known} positions; lower them"
        )


def positions(model: Path) -> int | None:
    """The number of positions of the model in a folder, None if its configuration does not say."""
    config = read_json(model / "config.json")
    return config.get("max_position_embeddings") or config.get("n_positions")  # GPT-2's name for it


def _template(model: Path, config: Mapping[str, Any]) -> str:
    """The model's chat template: its own file, or a key of tokenizer_config.json in older folders."""
    file = model / "chat_template.jinja"
    template: Any = file.read_text("utf-8") if file.exists() else config.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = {each["name"]: each["template"] for each in template}.get("default")
    if not template:
        remedy = "set `format_pairs.template: instruction`"
        raise ParamsError(f"params.yaml: format_pairs.template: {model} has no chat template; {remedy}")
    return str(template)


def _read_tokenizer(path: Path) -> Tokenizer:
    """tokenizer.json, without its own truncation and padding."""
    if not path.exists():
        raise DataError(f"{path}: not found; use a model with a fast tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise DataError(f"{path}: not a tokenizer ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _control_token(tokenizer: Tokenizer, model: Path, config: Mapping[str, Any], name: str) -> str | None:
    """The model's "eos" or "bos" token, added to the tokenizer's control tokens; None if the model has none."""
    token: Any = config.get(f"{name}_token")
    if isinstance(token, Mapping):  # older folders
        token = token["content"]
    if token is None and (model / "config.json").exists():  # GPT-2 has them only there, by id
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
    """A token's id. Raises `DataError` if the vocabulary, and so the model, does not have it."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise DataError(f"{model}/tokenizer_config.json: {token!r} is not in tokenizer.json; use matching files")
    return int(number)
