"""Principles of the user's own, by which a judge on a server compares answers (constitutional AI, arXiv:2212.08073)."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, TypeAdapter

from prefdag.check_params import checked
from prefdag.lifecycle.errors import ParamsError
from prefdag.runtime.types import Text
from prefdag.runtime.yaml import parse_mapping, read_text

if TYPE_CHECKING:
    from prefdag.config.sources import PathSource

PRINCIPLES = TypeAdapter(Annotated[dict[Text, Text], Field(min_length=1)])


def read_principles(source: "PathSource", key: str) -> dict[str, str]:
    """The principles in a YAML file, by name, in its order.

    Args:
        key: of the source in params.yaml.

    Raises:
        SourceError: as `fetch`.
        ParamsError: the source has no pin, or is no such file.
    """
    from prefdag.sources.fetching import fetch

    check_pinned(source, key)
    with TemporaryDirectory() as folder:
        fetch(source, Path(folder), key)
        files = list(Path(folder).iterdir())
        if len(files) != 1 or files[0].is_dir():
            raise ParamsError(f"params.yaml: {key}.path: '{source.path}' is a folder; name the file")
        text = read_text(files[0])
    return checked(PRINCIPLES, parse_mapping(text, source.path), source.path)


def check_pinned(source: "PathSource", key: str) -> None:
    """Raises `ParamsError` if a file has no pin: DVC sees the section, not the file."""
    if source.sha256 is None:
        section = key.partition(".")[0]
        raise ParamsError(
            f"params.yaml: {key}.sha256: null, so an edit of the file would go unnoticed; `prefdag pin {section}` writes it"
        )
