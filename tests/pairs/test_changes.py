"""What formatting reports: changed rows, tokens joined at the boundary, and which tokens are scored."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from prefdag.pairs.changes import boundary_joins, example, formatting_changes
from prefdag.pairs.encoding import columns_of, encode_pair
from prefdag.tokenizer.tokenizer import ChatTokenizer

TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>{{ end }}"


def tokenizer(folder: Path, end: str = "") -> ChatTokenizer:
    """One token per byte, one for "::", and control tokens. The template ends with `end`, after its last control token."""
    vocab = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters = Tokenizer(models.BPE(vocab | {"::": len(vocab)}, [(":", ":")]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    letters.add_special_tokens([AddedToken(t, special=True) for t in ("</s>", "<|user|>", "<|assistant|>")])
    letters.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("{{ end }}", end))
    return ChatTokenizer(folder, "chat")


def row(prompt: str, chosen: str | None, rejected: str | None) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}]
    return {"source": "a:1", "prompt": turns, "chosen": chosen, "rejected": rejected}


def formatted(row: dict[str, Any], letters: ChatTokenizer, max_response: int = 9) -> dict[str, Any]:
    return columns_of(encode_pair({"id": "0", "preference": 1.0, **row}, letters, 50, max_response))


def changes(
    row: dict[str, Any], letters: ChatTokenizer, max_prompt: int = 50, max_response: int = 6
) -> list[list[str]]:
    """Column, change and reason of every change."""
    changed = formatting_changes(row, encode_pair(row, letters, max_prompt, max_response), letters)
    return [[change.column, change.change, change.reason] for change in changed]


def test_changes_by_hand(tmp_path: Path) -> None:
    letters = tokenizer(tmp_path)
    assert changes(row("hi", "yes", "no"), letters) == []
    # "longer" and EOS are 6 + 1 tokens, cut to 6: the first 6 - 1 and EOS. A prompt is the user token, "hello" and the
    # assistant token: 1 + 5 + 1.
    assert changes(row("hi", "yes", "longer"), letters) == [["rejected", "cut", "7 tokens, keeps its first 5"]]
    cut = [["prompt", "cut", "7 tokens, keeps its last 4"]]
    assert changes(row("hello", "yes", "no"), letters, max_prompt=4) == cut
    same = [["rejected", "left out", "the cut leaves the same tokens as of chosen"]]
    assert changes(row("hi", "12345 yes", "12345 no"), letters) == same
    blank = [["chosen", "left out", "the cut leaves nothing but white space"]]
    assert changes(row("hi", "      yes", "no"), letters) == blank
    assert changes(row("a</s>", "</s>b<|user|>", None), letters, max_response=50) == [
        ["prompt", "neutralised", "1 control tokens typed in it become ordinary text"],
        ["chosen", "neutralised", "2 control tokens typed in it become ordinary text"],
    ]


def test_typed_control_tokens_stay_text(tmp_path: Path) -> None:
    letters = tokenizer(tmp_path)
    assert example(formatted(row("a</s>", "b", "longer"), letters, 6), letters) == {
        "source": "a:1",
        "prompt": [
            {"text": "<|user|>", "control": True, "kind": "read"},
            {"text": "a</s>", "control": False, "kind": "read"},
            {"text": "<|assistant|>", "control": True, "kind": "read"},
        ],
        "chosen": [
            {"text": "b", "control": False, "kind": "scored"},
            {"text": "</s>", "control": True, "kind": "scored"},
        ],
        "rejected": [
            {"text": "longe", "control": False, "kind": "scored"},
            {"text": "</s>", "control": True, "kind": "not scored"},
        ],
    }


def test_a_missing_response_is_not_shown(tmp_path: Path) -> None:
    letters = tokenizer(tmp_path)
    assert example(formatted(row("hi", "a", None), letters), letters).keys() == {"source", "prompt", "chosen"}


@pytest.mark.parametrize(("end", "joined"), [("", 0), (" :", 1), (" ", 0)])
def test_boundary_joins_are_found(tmp_path: Path, end: str, joined: int) -> None:
    """ ":" before the response and ":" at its start would be one token, unless a control token separates them."""
    letters = tokenizer(tmp_path, end)
    assert boundary_joins(formatted(row("hi:", ":yes", "no"), letters), letters) == [bool(joined), False]
    assert boundary_joins(formatted(row("hi:", None, ":no"), letters), letters) == [bool(joined)]
