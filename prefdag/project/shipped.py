"""Where the files of the pipeline are that a project of the user's own starts from: stages, profiles, params.yaml, ..."""

from pathlib import Path

_PACKED = Path(__file__).with_name("files")  # in a wheel they are inside the package (see pyproject.toml)
FILES = _PACKED if _PACKED.is_dir() else Path(__file__).parents[2]  # in a checkout they are the repository's own
