"""Comparisons as files: a table to fill in, and what Label Studio and Argilla import. Imports no torch.

labels/to_label/round-1/to_label.csv
labels/to_label/round-1/label_studio.json, label_studio.xml
labels/to_label/round-1/argilla
labels/to_label/round-1/comparisons.json      what the labelling page shows
"""

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from prefdag.labelling.comparisons import Comparison, as_json, from_json
from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import json_text, project_root, read_json, writing

COMPARISONS = "comparisons.json"
COLUMNS = ("id", "prompt", "first", "second", "outcome", "note")
QUESTION = "Which answer is better?"
CHOICES = {
    "first": "The first one",
    "second": "The second one",
    "tie": "Both are equally good",
    "skip": "I cannot tell",
}
LABEL_STUDIO = """<View>
  <Header value="Prompt"/>
  <Text name="prompt" value="$prompt"/>
  <View style="display: flex; gap: 2em">
    <View style="flex: 1"><Header value="First answer"/><Text name="first" value="$first"/></View>
    <View style="flex: 1"><Header value="Second answer"/><Text name="second" value="$second"/></View>
  </View>
  <Header value="Which answer is better? skip: I cannot tell"/>
  <Choices name="outcome" toName="prompt" choice="single" showInline="true" required="true">
    <Choice value="first" hotkey="1"/>
    <Choice value="second" hotkey="2"/>
    <Choice value="tie" hotkey="3"/>
    <Choice value="skip" hotkey="4"/>
  </Choices>
  <TextArea name="note" toName="prompt" placeholder="Note" maxSubmissions="1"/>
</View>
"""


def to_label(name: str) -> Path:
    """Where the forms of a round are, "round-1". Git ignores the folder, and DVC never removes it."""
    return project_root() / "labels" / "to_label" / name


def forms(comparisons: Sequence[Comparison], name: str) -> dict[str, str]:
    """The text of each file, by its path in the folder."""
    return {
        "to_label.csv": _table(comparisons),
        "label_studio.json": json_text([{"data": _fields(each)} for each in comparisons]),
        "label_studio.xml": LABEL_STUDIO,
        "argilla/records.json": json_text([_record(each) for each in comparisons]),
        "argilla/.argilla/settings.json": json_text(_settings()),
        "argilla/.argilla/dataset.json": json_text({"name": name}),
        COMPARISONS: json_text([as_json(each) for each in comparisons]),
    }


def write_forms(folder: Path, comparisons: Sequence[Comparison]) -> None:
    """Write all files, unless they are there. Files of other comparisons in which somebody wrote are renamed, not replaced."""
    texts = forms(comparisons, folder.name)
    with suppress(DataError):
        if read_comparisons(folder) == list(comparisons):
            return
    if folder.exists() and not _untouched(folder):
        kept = next(path for number in count(1) if not (path := folder.with_name(f"{folder.name}.{number}")).exists())
        folder.rename(kept)
    with writing(folder) as temporary:
        for name, text in texts.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8", newline="")


def read_comparisons(folder: Path) -> list[Comparison]:
    """What the folder asks. Raises `DataError` if it does not."""
    path = folder / COMPARISONS
    if not path.exists():
        raise DataError(f"{path}: not found; `dvc repro` writes it when a round has something to label")
    try:
        return [from_json(each) for each in read_json(path)]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not as `dvc repro` wrote it ({error}); remove the folder, and run `dvc repro`"
        ) from None


def _untouched(folder: Path) -> bool:
    """Whether all files are as `write_forms` left them."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    try:
        written = forms(read_comparisons(folder), folder.name)
        return found.keys() == written.keys() and all(
            path.read_bytes() == written[name].encode() for name, path in found.items()
        )
    except DataError:
        return False


def _fields(comparison: Comparison) -> dict[str, str]:
    return {"id": comparison.id, "prompt": comparison.prompt, "first": comparison.first, "second": comparison.second}


def _table(comparisons: Sequence[Comparison]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_fields(each) for each in comparisons)
    return stream.getvalue()


def _record(comparison: Comparison) -> dict[str, Any]:
    fields = _fields(comparison)
    return {"id": fields.pop("id"), "fields": fields, "metadata": {}, "suggestions": {}, "responses": {}, "vectors": {}}


def _settings() -> Mapping[str, Any]:
    """Of an Argilla dataset: what `rg.Settings` writes."""
    titles = {"prompt": "Prompt", "first": "First answer", "second": "Second answer"}
    options = [{"value": value, "text": text} for value, text in CHOICES.items()]
    return {
        "guidelines": QUESTION,
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
        "fields": [
            {
                "name": name,
                "title": title,
                "required": True,
                "settings": {"type": "text", "use_markdown": False},
            }
            for name, title in titles.items()
        ],
        "questions": [
            {
                "name": "outcome",
                "title": QUESTION,
                "required": True,
                "settings": {"type": "label_selection", "options": options, "visible_options": len(options)},
            },
            {"name": "note", "title": "Note", "required": False, "settings": {"type": "text", "use_markdown": False}},
        ],
        "metadata": [],
        "vectors": [],
    }
