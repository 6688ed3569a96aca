"""A chat template: the model's own or Alpaca's, with the user's options, rendered as transformers renders it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefdag.lifecycle.errors import DataError, ParamsError, suggestion

if TYPE_CHECKING:
    from prefdag.pairs.turns import Messages

TemplateName = Literal["chat", "instruction"]
Tools = Sequence[Mapping[str, Any]] | None
OPTIONS = "params.yaml: format_pairs.template_options"
# The names of the templates that transformers chooses: one for dialogues with tools, if there is one, and one for all others.
TOOL_USE, DEFAULT = "tool_use", "default"
MORE_TEMPLATES = "additional_chat_templates"  # the folder of all but the default one, NAME.jinja

# Alpaca's instruction template, as a chat template, so that both kinds use the same code. A system message is a paragraph
# after the preamble; earlier turns repeat the two headings.
INSTRUCTION_TEMPLATE = """\
{{- 'Below is an instruction that describes a task. Write a response that appropriately completes the request.' }}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{- '\\n\\n' + message['content'] }}
{%- elif message['role'] == 'user' %}{{- '\\n\\n### Instruction:\\n' + message['content'] }}
{%- elif message['role'] == 'assistant' %}{{- '\\n\\n### Response:\\n' + message['content'] }}
{%- else %}{{- raise_exception('it has no turns of ' + message['role']) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '\\n\\n### Response:\\n' }}{% endif %}"""

# Some templates (Llama 3, SmolLM3) put today's date into the prompt, so that the same rows would get other ids tomorrow.
# A macro of the same name shadows the function that they call. The date is the default of Llama 3's own template.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}\n"  # jinja drops the newline after a tag
# What a template gets from the pipeline or transformers, so an option may not have these names.
GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}


class ChatTemplate:
    """A template with the variables that it always gets."""

    def __init__(self, source: str, tokens: Mapping[str, str], options: Mapping[str, Any]) -> None:
        """Take a template's source.

        Args:
            tokens: bos_token and eos_token, which templates insert themselves.
            options: other variables, such as enable_thinking.
        """
        self.source = source
        self.options = dict(options)
        self._full = FIXED_DATE + source
        self._tokens = dict(tokens)

    def render(self, messages: "Messages", tools: Tools = None, *, generation_prompt: bool) -> str:
        """The text of a dialogue. With `generation_prompt`, up to where the model's answer starts.

        Raises:
            DataError: the template rejects the dialogue, for example because it does not support system messages.
        """
        # Imported here because it takes a second, and the readers of images and evals import this module too.
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        variables: dict[str, Any] = {**self._tokens, **self.options}
        try:
            return render_jinja_template(
                [[dict(message) for message in messages]],
                tools=None if tools is None else [dict(tool) for tool in tools],
                chat_template=self._full,
                add_generation_prompt=generation_prompt,
                **variables,
            )[0][0]
        # Beside its own errors, whatever an expression of the template raises, for example on adding text to an object.
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            remedy = "change the dialogue or set `format_pairs.template: instruction`"
            raise DataError(f"the model's chat template rejects this dialogue ({_short(error)}); {remedy}") from None

    def jinja(self) -> str:
        """The template for other programs: the options of training are its defaults, and the date is fixed."""
        defaults = "".join(
            f"{{%- if {name} is not defined %}}{{%- set {name} = {value!r} %}}{{%- endif %}}"
            for name, value in self.options.items()
        )
        return defaults + (self._full if "strftime_now" in self.source else self.source)

    def variables(self) -> set[str]:
        """The variables that the template reads and that neither the pipeline nor transformers sets."""
        from jinja2 import meta, nodes
        from transformers.utils.chat_template_utils import _compile_jinja_template

        environment: Any = _compile_jinja_template(self._full).environment
        tree = environment.parse(self.source)
        assigned = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
        asked_for = {  # x is defined, x | default(...): such a variable may be assigned as well
            each.node.name
            for each in tree.find_all((nodes.Test, nodes.Filter))
            if each.name in ("defined", "undefined", "default", "d") and isinstance(each.node, nodes.Name)
        }
        free = (meta.find_undeclared_variables(tree) - assigned) | asked_for
        return free - GIVEN - set(environment.globals)


def check_options(templates: Iterable[ChatTemplate], options: Mapping[str, Any]) -> None:
    """Check that one of the templates mentions each option. Raises `ParamsError`."""
    if not options:
        return
    known = sorted(set[str]().union(*(template.variables() for template in templates)))
    for name in options:
        if name in GIVEN:
            raise ParamsError(f"{OPTIONS}.{name}: the pipeline sets it; remove it")
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has no options"
            remedy = suggestion(name, known, "remove it")
            raise ParamsError(f"{OPTIONS}.{name}: the chat template does not mention it ({has}); {remedy}")


def read_templates(model: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates of a model folder by name, as transformers reads them: `DEFAULT`, and perhaps `TOOL_USE` and others.

    They are in files of their own, or else, in older folders, in a key of tokenizer_config.json.

    Raises:
        ParamsError: the model has no default template.
        DataError: the key is neither a template nor several with names.
    """
    files = {DEFAULT: model / "chat_template.jinja"} | {
        path.stem: path for path in sorted((model / MORE_TEMPLATES).glob("*.jinja"))
    }
    templates = {name: path.read_text("utf-8") for name, path in files.items() if path.exists()}
    templates = templates or _configured(model, config.get("chat_template"))
    if not templates.get(DEFAULT):
        others = ", ".join(sorted(name for name in templates if name != DEFAULT))
        has = f"chat templates only by the names {others}, and no default one" if others else "no chat template"
        remedy = "set `format_pairs.template: instruction`"
        if others:
            remedy += ", or use a copy of the model in which chat_template.jinja is one of them"
        raise ParamsError(f"params.yaml: format_pairs.template: {model} has {has}; {remedy}")
    return templates


def either(with_tools: str, without: str) -> str:
    """Both templates as one, for programs that read only one: the first for dialogues with tools."""
    # The line break after a tag is no part of the text, nor is the last one of a template.
    first, second = ("\n" + source.removesuffix("\n") for source in (with_tools, without))
    return f"{{% if tools %}}{first}{{%+ else %}}{second}{{%+ endif %}}"


def _configured(model: Path, value: Any) -> dict[str, str]:
    """The templates in tokenizer_config.json: a text, an object by name, or a list of {name, template}."""
    try:
        named = {each["name"]: each["template"] for each in value} if isinstance(value, list) else value
    except (TypeError, KeyError):
        named = 0
    named = named if isinstance(named, Mapping) else {} if named is None else {DEFAULT: named}
    if not all(isinstance(template, str) for template in named.values()):
        raise DataError(
            f"{model}/tokenizer_config.json: chat_template: neither a template nor a list of {{name, template}}; fetch it again"
        )
    return dict(named)


def with_text_arguments(messages: "Messages") -> list[dict[str, Any]]:
    """Tool calls with their arguments as JSON text, which some templates expect instead of an object."""
    return [
        dict(turn) | {"tool_calls": [_with_text_arguments(call) for call in turn["tool_calls"]]}
        if turn.get("tool_calls")
        else dict(turn)
        for turn in messages
    ]


def without_content(messages: "Messages") -> list[dict[str, Any]]:
    """The same, with null for empty text beside tool calls, which some templates test for."""
    return [
        turn | {"content": None} if turn.get("tool_calls") and not turn["content"] else turn
        for turn in with_text_arguments(messages)
    ]


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if not isinstance(function.get("arguments"), str):
        function["arguments"] = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return dict(call) | {"function": function}


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
