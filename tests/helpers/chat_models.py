"""Stand-ins for reference and policy in tests of the chat: a real byte tokenizer and fixed answers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dialogues import CHATML, write_byte_tokenizer

from prefdag.chat.dialogue import ChatModels, Generate
from prefdag.tokenizer.tokenizer import ChatTokenizer

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer(folder: Path) -> ChatTokenizer:
    """A tokenizer with a token per byte, a few merges, and the ChatML template."""
    write_byte_tokenizer(folder, SPECIALS, CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>")
    return ChatTokenizer(folder, "chat")


def saying(answer: str | Callable[[str], str], tokenizer: ChatTokenizer, asked: list[str] | None = None) -> Generate:
    """A model that answers `answer`, or `answer(prompt)`, one character per token, up to `max_new_tokens`."""

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
    return ChatModels({name: saying(answer, tokenizer, asked) for name, answer in answers.items()}, tokenizer, window)
