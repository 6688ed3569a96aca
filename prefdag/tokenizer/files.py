"""Reads the tokenizer of a model folder: tokenizer.json, and what the JSON files beside it say of tokens and positions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json


def stop_ids_of(model: Path) -> list[int]:
    """The model's own list of tokens at which generation stops; generation_config.json goes before config.json."""
    for name in ("generation_config.json", "config.json"):
        if (model / name).exists() and (ids := read_json(model / name).get("eos_token_id")) is not None:
            return list(ids) if isinstance(ids, list) else [ids]
    return []


def read_tokenizer(path: Path) -> Tokenizer:
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


def control_token(tokenizer: Tokenizer, model: Path, config: Mapping[str, Any], name: str) -> str | None:
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
    added = tokenizer.get_added_tokens_decoder().get(token_id(tokenizer, token, model))
    if added is None or not added.special:
        tokenizer.add_special_tokens([token])
    return str(token)


def token_id(tokenizer: Tokenizer, token: str, model: Path) -> int:
    """A token's id. Raises `DataError` if the vocabulary, and so the model, does not have it."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise DataError(f"{model}/tokenizer_config.json: {token!r} is not in tokenizer.json; use matching files")
    return int(number)


def positions(model: Path) -> int | None:
    """The number of positions of the model in a folder, None if its configuration does not say."""
    config = read_json(model / "config.json")
    number: int | None = config.get("max_position_embeddings") or config.get("n_positions")  # GPT-2's name for it
    return number
