"""Chat with the models in a terminal, or through a pipe."""

import re
import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from prefdag.lifecycle.errors import PrefdagError

if TYPE_CHECKING:
    from prefdag.chat.dialogue import ChatModels

Conversations = dict[str, list[dict[str, str]]]
# Characters that would move the cursor, ring the bell or change the writing direction. They are shown as escapes.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def converse(chat: "ChatModels", max_new_tokens: int) -> None:
    """Put each line to all models. Each model sees only its own answers. An empty line or the end of the input ends."""
    typer.echo("/reset starts a new conversation. An empty line or Ctrl-D ends.", err=True)
    histories = _empty(chat)
    while question := _read_line():
        if question == "/reset":
            histories = _empty(chat)
            continue
        try:
            _answer(chat, histories, question, max_new_tokens)
        except PrefdagError as error:  # for example, a question that is too long
            typer.echo(f"error: {error}", err=True)


def ask_once(chat: "ChatModels", question: str, max_new_tokens: int) -> None:
    """Print the answers of all models to one question."""
    _answer(chat, _empty(chat), question, max_new_tokens)


def _empty(chat: "ChatModels") -> Conversations:
    return {name: [] for name in chat.models}


def _read_line() -> str:
    """The next line of the input, empty at its end."""
    if sys.stdin.isatty():
        typer.secho("> ", nl=False, bold=True)
    # A terminal that is not in UTF-8 may give lone surrogates, which no tokenizer accepts.
    return sys.stdin.readline().strip().encode("utf-8", "replace").decode()


def _answer(chat: "ChatModels", histories: Conversations, question: str, max_new_tokens: int) -> None:
    """Show the answers side by side, on a terminal as they are generated, and add them to the histories."""
    dialogues = {name: [*history, {"role": "user", "content": question}] for name, history in histories.items()}
    prompts = {name: chat.prompt(messages, max_new_tokens) for name, messages in dialogues.items()}
    if left_out := max(prompt.left_out for prompt in prompts.values()):
        typer.echo(
            f"The conversation is too long for the model. Its oldest {left_out} messages were left out.", err=True
        )
    texts = dict.fromkeys(histories, "")
    console = Console()
    with Live(console=console, transient=True) as live:

        def listen(name: str, piece: str) -> bool:
            texts[name] += piece
            live.update(_table(texts))
            return True

        for name, generate in chat.models.items():
            generate(prompts[name].ids, partial(listen, name), max_new_tokens=max_new_tokens, temperature=0.0, seed=0)
    console.print(_table(texts))
    for name, text in texts.items():
        histories[name] = [*dialogues[name], {"role": "assistant", "content": text}]


def _table(texts: Mapping[str, str]) -> Table:
    """Answers side by side, as plain text: without markup or terminal escapes."""
    table = Table(*texts, box=box.SIMPLE_HEAD, expand=True)
    for column in table.columns:
        column.ratio = 1
    table.add_row(*(Text(UNPRINTABLE.sub(lambda m: ascii(m[0])[1:-1], text)) for text in texts.values()))
    return table
