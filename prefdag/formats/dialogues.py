r"""Dialogues in any of their spellings, as lists of messages.

A message is {"role", "content"}, and `extra` if it has more that a chat template may read: a JSON object with
`reasoning_content`, `tool_calls` (each {"type": "function", "id", "function": {"name", "arguments"}}, arguments as an object),
`tool_call_id` and `name`.

    a text                                       one message; a transcript "\n\nHuman: ...\n\nAssistant: ..." is several
    {"role", "content"}, {"from", "value"}, ...  one message
    a list of these                              a dialogue
    the same as JSON or as a Python list         decoded first
"""

import re
from typing import TYPE_CHECKING, Any

from prefdag.formats.faults import EXCERPT, Fault, kind, shown
from prefdag.formats.values import compact, decoded, holds

if TYPE_CHECKING:
    from prefdag.formats.fields import Field

Message = dict[str, str]  # role: system, user, assistant or tool; content; and extra, a JSON object, if there is any

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatbot", "bot", "ai"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),  # LLaMA-Factory's turn of calls, whose value is JSON
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "text")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
TEXT_PARTS = {"text", "input_text", "output_text"}
STORED = re.compile(r"""\s*\[?\s*\{\s*['"]""")  # an object or a list of objects stored as text
SPEAKER = re.compile(r"(?:\n\n|\A)(Human|Assistant):")
# Some programs strip the line breaks in front.
TRANSCRIPT = re.compile(r"\n\nHuman:|Human:.*\n\nAssistant:", re.DOTALL)
NAMES = {
    "system": "a system turn",
    "user": "a user turn",
    "assistant": "an assistant turn",
    "tool": "a tool turn",
}


def dialogue(field: "Field", role: str) -> list[Message]:
    """The messages of a field. A text without speakers is one message of `role`."""
    _decode(field)
    if isinstance(field.value, list):
        return [message(turn) for turn in field.items("turns")]
    if isinstance(field.value, dict):
        return [message(field)]
    text = field.text()
    if not TRANSCRIPT.match(text):
        return [{"role": role, "content": text}]
    turns = transcript(text, field.path)
    # A prompt may end where the response begins.
    empty = role == "user" and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip()
    return turns[:-1] if empty else turns


def reply(field: "Field") -> tuple[list[Message], Message]:
    """The messages before a response, if the field is a whole dialogue, and the response."""
    turns = dialogue(field, "assistant")
    if not turns or turns[-1]["role"] != "assistant":
        raise Fault(field.path, f"ends with {last_turn(turns)}; the last turn must be the assistant's")
    return turns[:-1], turns[-1]


def ends_with_user(turns: list[Message], column: str) -> list[Message]:
    """`turns`, a prompt, if a response can follow: the last one is the user's or a tool's."""
    if not turns or turns[-1]["role"] not in ("user", "tool"):
        remedy = "the last turn before the response must be the user's"
        raise Fault(column, f"the prompt ends with {last_turn(turns)}; {remedy}")
    return turns


def last_turn(turns: list[Message]) -> str:
    """What a dialogue ends with, in words."""
    return NAMES[turns[-1]["role"]] if turns else "no turn"


def transcript(text: str, column: str) -> list[Message]:
    r"""The turns of "\n\nHuman: ...\n\nAssistant: ..."."""
    before, *turns = SPEAKER.split(text)
    if before:
        raise Fault(column, r"text before the first turn; a transcript starts with '\n\nHuman:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": content.removeprefix(" ")}
        for speaker, content in zip(turns[::2], turns[1::2], strict=True)
    ]


def message(turn: "Field") -> Message:
    """One turn."""
    if isinstance(turn.value, str) and STORED.match(turn.value):
        turn.structured()
    if not isinstance(turn.value, dict):
        raise Fault(turn.path, f"{kind(turn.value)} where a turn is needed, an object with role and content")
    role_field, content = _needed(turn, ROLE_KEYS), turn.one_of(*CONTENT_KEYS)
    spelled = role_field.text()
    role = ROLES.get(spelled.lower())
    if role is None:
        raise Fault(role_field.path, f"unknown role {spelled[:EXCERPT]!r}; use {', '.join(ROLES)}")
    extra: dict[str, Any] = {}
    if role == "call":
        content = _needed(turn, CONTENT_KEYS)
        return _message("assistant", "", {"tool_calls": tool_calls(content)}, turn.path)
    if role == "assistant":
        if (reasoning := turn.one_of(*REASONING_KEYS)) is not None and holds(reasoning.value):
            extra["reasoning_content"] = reasoning.text()
        if (calls := turn.one_of("tool_calls", "function_call")) is not None and holds(calls.value):
            extra["tool_calls"] = tool_calls(calls)
    if role == "tool":
        extra |= {key: turn[key].text() for key in ("tool_call_id", "name") if turn.has(key)}
    if content is None or (content.value is None and extra):
        content = _needed(turn, CONTENT_KEYS) if not extra or role == "tool" else None
    return _message(role, _content(content) if content is not None else "", extra, turn.path)


def tool_calls(field: "Field") -> list[dict[str, Any]]:
    """The calls of a turn: a list of them or a single one, as objects or as JSON."""
    field.structured()
    return [_call(call) for call in (field.items("calls") if isinstance(field.value, list) else [field])]


def _message(role: str, content: str, extra: dict[str, Any], column: str) -> Message:
    return {"role": role, "content": content} | ({"extra": compact(extra, column)} if extra else {})


def _needed(turn: "Field", keys: tuple[str, ...]) -> "Field":
    """The field of a turn with one of these names."""
    field = turn.one_of(*keys)
    if field is None:
        pair = next((own for own in (("role", "content"), ("from", "value")) if own[0] in turn), ("role", "content"))
        name = pair[0] if keys is ROLE_KEYS else pair[1]
        needs = f"missing; a turn needs {pair[0]} and {pair[1]}"
        if "[" not in turn.path:  # an object that only has the text of a response, for example beside its score
            needs += f"; or name the text in validate_pairs.columns, as {turn.path}.KEY"
        raise Fault(f"{turn.path}.{name}", needs)
    return field


def _content(field: "Field") -> str:
    """A text, or the texts of a list of parts, joined; or one such part."""
    if isinstance(field.value, dict):
        return _part(field)
    if not isinstance(field.value, list):
        return field.text()
    return "".join(part.text() if isinstance(part.value, str) else _part(part) for part in field.items("parts"))


def _part(part: "Field") -> str:
    name = part["type"].text() if "type" in part else "text"
    if name not in TEXT_PARTS:
        raise Fault(part.path, f"a part of type {shown(name)}; only text can be read, so remove the part or the row")
    return part["text"].text()


def _call(field: "Field") -> dict[str, Any]:
    body = field["function"].structured() if field.has("function") else field
    name = body["name"].text()
    given = body.one_of("arguments", "parameters")
    arguments = given.structured().take() if given is not None and holds(given.value) else {}
    if not isinstance(arguments, dict):
        raise Fault(given.path if given else field.path, f"{kind(arguments)} where an object of arguments is needed")
    if field.has("type") and field["type"].text() != "function":
        raise Fault(field["type"].path, f"{shown(field['type'].text())} calls are not supported, only functions")
    identity = {"id": field["id"].text()} if field.has("id") else {}
    return {"type": "function", **identity, "function": {"name": name, "arguments": arguments}}


def _decode(field: "Field") -> None:
    """Decode a dialogue that is stored as text. Another text that looks like one stays a text."""
    text = field.value
    if not isinstance(text, str) or not STORED.match(text):
        return
    try:
        value = decoded(text)
    except ValueError:
        if re.match(r"""\s*\[.{,200}['"](role|from)['"]\s*:""", text, re.DOTALL):
            raise Fault(field.path, "starts like a list of turns, but is neither JSON nor a Python list") from None
        return
    turns = value if isinstance(value, list) else [value]
    if turns and all(
        isinstance(turn, dict) and turn.keys() & set(ROLE_KEYS) and turn.keys() & set(CONTENT_KEYS) for turn in turns
    ):
        field.value = value
