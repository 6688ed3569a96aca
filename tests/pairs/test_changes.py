"""What formatting says that it did: changes, the boundary between prompt and response, what is scored, leaks."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from prefdag.lifecycle.errors import ParamsError
from prefdag.pairs.changes import boundary_joins, example, formatting_changes
from prefdag.pairs.formatting import columns_of, encode_pair
from prefdag.pairs.tokenizer import ChatTokenizer, check_window

TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>{{ end }}"


def tokenizer(folder: Path, end: str = "") -> ChatTokenizer:
    """Letters, a token for "::" and control tokens; `end` stands between the last of these and the response."""
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


def formatted(each: dict[str, Any], letters: ChatTokenizer, max_response: int = 9) -> dict[str, Any]:
    return columns_of(encode_pair({"id": "0", "preference": 1.0, **each}, letters, 50, max_response))


def found(each: dict[str, Any], letters: ChatTokenizer, max_prompt: int = 50, max_response: int = 6) -> list[list[str]]:
    said = formatting_changes(each, encode_pair(each, letters, max_prompt, max_response), letters)
    return [[change.column, change.change, change.reason] for change in said]


def test_changes_by_hand(tmp_path: Path) -> None:
    letters = tokenizer(tmp_path)
    assert found(row("hi", "yes", "no"), letters) == []
    assert found(row("hi", "yes", "longer"), letters) == [["rejected", "cut", "7 tokens, keeps its first 5"]]
    assert found(row("hello", "yes", "no"), letters, max_prompt=4) == [["prompt", "cut", "7 tokens, keeps its last 4"]]
    same = [["rejected", "left out", "the cut leaves the same tokens as of chosen"]]
    assert found(row("hi", "12345 yes", "12345 no"), letters) == same
    blank = [["chosen", "left out", "the cut leaves nothing but white space"]]
    assert found(row("hi", "      yes", "no"), letters) == blank
    assert found(row("a</s>", "</s>b<|user|>", None), letters, max_response=50) == [
        ["prompt", "neutralised", "1 control tokens typed in it become ordinary text"],
        ["chosen", "neutralised", "2 control tokens typed in it become ordinary text"],
    ]


def test_control_tokens_that_are_typed_stay_text(tmp_path: Path) -> None:
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


def test_a_response_that_is_not_there_is_not_shown(tmp_path: Path) -> None:
    letters = tokenizer(tmp_path)
    assert example(formatted(row("hi", "a", None), letters), letters).keys() == {"source", "prompt", "chosen"}


@pytest.mark.parametrize(("end", "joined"), [("", 0), (" :", 1), (" ", 0)])
def test_boundary_joins(tmp_path: Path, end: str, joined: int) -> None:
    """ ":" before the response and ":" at its start would have been one token; a control token parts them."""
    letters = tokenizer(tmp_path, end)
    assert boundary_joins(formatted(row("hi:", ":yes", "no"), letters), letters) == [bool(joined), False]
    assert boundary_joins(formatted(row("hi:", None, ":no"), letters), letters) == [bool(joined)]


@pytest.mark.parametrize("key", ["max_position_embeddings", "n_positions"])
def test_a_window_larger_than_the_model_is_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"{key}": 100}}')
    check_window(tmp_path, 60, 40)
    with pytest.raises(
        ParamsError, match=r"max_prompt_tokens \+ max_response_tokens is 101, .* has 100 positions; lower"
    ):
        check_window(tmp_path, 60, 41)
    (tmp_path / "config.json").write_text("{}")
    check_window(tmp_path, 60, 41)
