"""Stand-ins for reference and policy in tests of the chat: a real tokenizer of bytes, and answers that are given."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dialogues import CHATML, write_byte_tokenizer

from prefdag.chat.dialogue import ChatModels, Generate
from prefdag.pairs.tokenizer import ChatTokenizer

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer(folder: Path) -> ChatTokenizer:
    """A token a byte, but for a few; ChatML."""
    write_byte_tokenizer(folder, SPECIALS, CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>")
    return ChatTokenizer(folder, "chat")


def saying(answer: str | Callable[[str], str], tokenizer: ChatTokenizer, asked: list[str] | None = None) -> Generate:
    """A model that says `answer`, or what it makes of the prompt, a character a token, up to its bound."""

    def generate(
        prompt_ids: Sequence[int],
        listener: Callable[[str], bool],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> tuple[int, bool]:
        prompt = tokenizer.decode(list(prompt_ids))
        if asked is not None:
            asked.append(prompt)
        text = answer if isinstance(answer, str) else answer(prompt)
        for number, character in enumerate(text[:max_new_tokens]):
            if not listener(character):
                return number + 1, False
        return len(text[:max_new_tokens]), len(text) < max_new_tokens

    return generate


def stand_ins(
    folder: Path,
    answers: Mapping[str, str | Callable[[str], str]],
    window: int | None = None,
    asked: list[str] | None = None,
) -> ChatModels:
    """Models that give these answers, by name."""
    tokenizer = byte_tokenizer(folder)
    return ChatModels({name: saying(each, tokenizer, asked) for name, each in answers.items()}, tokenizer, window)
