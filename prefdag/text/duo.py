"""Reference and policy, side by side, to be asked."""

from dataclasses import dataclass
from pathlib import Path

from prefdag.data.chat import ChatTokenizer, TemplateName
from prefdag.errors import DataError
from prefdag.text.model import Models, load_models


@dataclass(frozen=True)
class Duo:
    """Reference and policy, and the tokenizer of both."""

    models: Models
    tokenizer: ChatTokenizer


def load_duo(reference: Path, policy: Path, template: TemplateName) -> Duo:
    """The pipeline's reference and policy, ready to answer. Raises `DataError` where they are not there."""
    for folder in (reference, policy):
        if not folder.is_dir():
            raise DataError(f"{folder}: not found; `dvc repro` makes it")
    return Duo(load_models(reference, policy, packed=False), ChatTokenizer(reference, template))
