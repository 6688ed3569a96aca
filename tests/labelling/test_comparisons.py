"""Which answers people compare, and the files in which they are asked."""

import csv
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from comparing import ANSWERS, ASKED, HOSTILE, four

from prefdag.labelling.comparisons import comparisons, ring
from prefdag.labelling.forms import forms, read_comparisons, write_forms
from prefdag.lifecycle.errors import DataError
from prefdag.pairs.turns import Asked


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ("a", []),
        ("aa", []),
        ("ab", [(0, 1)]),
        ("aba", [(0, 1)]),
        ("abc", [(0, 1), (0, 2), (1, 2)]),
        ("abcd", [(0, 1), (0, 3), (1, 2), (2, 3)]),
        ("aabcbd", [(0, 2), (0, 5), (2, 3), (3, 5)]),
    ],
)
def test_each_answer_is_compared_with_two_others(texts: str, expected: list[tuple[int, int]]) -> None:
    """As many comparisons as different answers; equal answers are not compared."""
    assert ring(list(texts)) == expected


def test_a_comparison_is_known_by_what_it_compares() -> None:
    asked = comparisons(ANSWERS, ASKED)
    assert list(asked) == [(0, 1), (0, 2), (1, 2), (3, 4)]
    ids = [each.id for each in asked.values()]
    assert len(set(ids)) == 4
    assert [each.id for each in comparisons(ANSWERS.iloc[::-1].reset_index(drop=True), ASKED).values()] != ids
    assert [each.id for each in four()] == ids
    other = ASKED | {"q": Asked([{"role": "user", "content": "Else?"}], None)}
    again = [each.id for each in comparisons(ANSWERS, other).values()]
    assert again[:3] == ids[:3]
    assert again[3] != ids[3]
    with_tool = ASKED | {"q": Asked(ASKED["q"].messages, [{"name": "f"}])}
    assert comparisons(ANSWERS, with_tool)[3, 4].prompt == 'tools: [{"name": "f"}]\n\nuser: Is q <b>?'


def test_the_forms_have_every_comparison() -> None:
    texts = forms(four(), "round-1")
    rows = list(csv.DictReader(io.StringIO(texts["to_label.csv"])))
    tasks = [task["data"] for task in json.loads(texts["label_studio.json"])]
    records = [{"id": each["id"], **each["fields"]} for each in json.loads(texts["argilla/records.json"])]
    assert tasks == records
    assert [{key: row[key] for key in tasks[0]} for row in rows] == tasks
    assert [row["second"] for row in rows] == ['c "q"\nnew', HOSTILE, HOSTILE, "y"]
    assert {row["outcome"] for row in rows} == {""}
    # What Label Studio shows is in its tasks, and what it offers is what is read back.
    interface = ET.fromstring(texts["label_studio.xml"])
    assert {each.get("value") for each in interface.iter("Text")} == {"$prompt", "$first", "$second"}
    offered = [each.get("value") for each in interface.iter("Choice")]
    settings = json.loads(texts["argilla/.argilla/settings.json"])
    assert [each["value"] for each in settings["questions"][0]["settings"]["options"]] == offered
    assert offered == ["first", "second", "tie", "skip"]


def test_the_forms_are_read_back_and_not_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "round-1"
    with pytest.raises(DataError, match="not found; `dvc repro` writes it when a round has something to label"):
        read_comparisons(folder)
    write_forms(folder, four())
    assert read_comparisons(folder) == four()
    filled = folder / "to_label.csv"
    filled.write_text("mine")
    write_forms(folder, four())
    assert filled.read_text() == "mine"


def test_forms_in_which_somebody_wrote_are_kept(tmp_path: Path) -> None:
    """Other comparisons replace forms as they were written; those that were changed get another name."""
    folder = tmp_path / "round-1"
    write_forms(folder, four())
    write_forms(folder, four()[:3])
    assert [path.name for path in tmp_path.iterdir()] == ["round-1"]
    (folder / "to_label.csv").write_text("mine")
    write_forms(folder, four())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-1", "round-1.1"]
    assert (tmp_path / "round-1.1" / "to_label.csv").read_text() == "mine"
    assert read_comparisons(folder) == four()
    (folder / "own.csv").write_text("mine")
    write_forms(folder, four()[:1])
    assert (tmp_path / "round-1.2" / "own.csv").exists()
