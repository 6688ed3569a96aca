"""Labels in files: what counts, what is refused, and that none is lost."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from comparing import four

from prefdag.labelling import labels as module
from prefdag.labelling.agreement import summary
from prefdag.labelling.forms import forms
from prefdag.labelling.labels import Label, append, latest, read_labels
from prefdag.lifecycle.errors import DataError

IDS = [each.id for each in four()]
TIME = "2026-01-31T12:00:00+00:00"


def label(key: str = "c", annotator: str = "ann", outcome: Any = "first", **others: Any) -> Label:
    return Label(id=key, annotator=annotator, outcome=outcome, **others)


def read(folder: Path) -> list[tuple[str, str, str]]:
    return [(each.label.annotator, each.label.id, each.label.outcome) for each in read_labels(folder)]


# The page's files


def test_the_last_label_counts_and_the_history_stays(tmp_path: Path) -> None:
    path = tmp_path / "ann.jsonl"
    for outcome in ("first", "second", "undone", "tie"):
        append(path, label(outcome=outcome, time=TIME, note="é\n"))
    append(path, label("d", outcome="skip", time=TIME))
    append(path, label("e", time=TIME))
    append(path, label("e", outcome="undone", time=TIME))
    assert [each.outcome for each in latest(read_labels(tmp_path)).values()] == ["tie", "skip"]
    assert len(path.read_text().splitlines()) == 7
    assert read_labels(tmp_path)[0].label.note == "é\n"


def test_a_label_that_cannot_be_written_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ann.jsonl"
    append(path, label())
    before = path.read_bytes()
    write = os.write
    monkeypatch.setattr(module.os, "write", lambda descriptor, data: write(descriptor, data[:5]))
    with pytest.raises(OSError, match="No space left"):
        append(path, label("d"))
    assert path.read_bytes() == before


def test_a_file_without_its_last_newline_is_added_to(tmp_path: Path) -> None:
    path = tmp_path / "ann.jsonl"
    append(path, label())
    path.write_text(path.read_text().rstrip("\n"))
    append(path, label("d"))
    assert [each.label.id for each in read_labels(tmp_path)] == ["c", "d"]


def test_of_two_files_the_later_label_counts(tmp_path: Path) -> None:
    append(tmp_path / "b.jsonl", label(outcome="first", time="2026-01-31T12:00:00Z"))
    append(tmp_path / "a.jsonl", label(outcome="second", time="2026-01-31T13:30:00+02:00"))
    assert [each.outcome for each in latest(read_labels(tmp_path)).values()] == ["first"]
    (tmp_path / "c.csv").write_text("id,annotator,outcome\nc,ann,tie\n")
    with pytest.raises(DataError, match=r"a.jsonl:1: ann labelled c otherwise in .*b.jsonl:1, and there is no time"):
        latest(read_labels(tmp_path))


# Tables


def test_a_filled_table_is_read(tmp_path: Path) -> None:
    """As a spreadsheet saves it: with a mark at its start, with semicolons, or with the rows in another order."""
    text = forms(four(), "round-1")["to_label.csv"].replace(",,\n", ",Tie,fine\n", 1)
    (tmp_path / "ann.csv").write_text("\ufeff" + text, "utf-8")
    (tmp_path / "others.csv").write_text(f"annotator;id;outcome\r\nbob;{IDS[1]};skip\r\neve;{IDS[1]};\r\n")
    assert read(tmp_path) == [("ann", IDS[0], "tie"), ("bob", IDS[1], "skip")]
    assert read_labels(tmp_path)[0].label.note == "fine"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "id,outcome\nc,better\n", r"a.csv:2: outcome 'better'; it is one of first, second, tie, skip$"),
        ("a.csv", "id,result\nc,tie\n", "no column outcome; fill in the column outcome of to_label.csv"),
        ("a.csv", "id,outcome\n,tie\n", "a.csv:2: id: empty; fill it in, or remove the row"),
        ("a.csv", "id,outcome,annotator\nc,tie\n", "a.csv:2: the row has not as many cells as the header"),
        ("a.csv", "id,outcome,time\nc,tie,noon\n", "a.csv:2: time 'noon'; write it as 2026-01-31T12:00:00Z"),
        ("a.xlsx", "", "a.xlsx: labels are .jsonl, .csv or .json files"),
        ("a.jsonl", '{"id": "c", "outc', "a.jsonl:1: not a label in JSON; mend the line, or remove it"),
        ("a.jsonl", '{"id": "c", "annotator": "a", "outcome": "tie", "score": 3}', "a.jsonl:1: score: unexpected"),
        ("a.jsonl", '{"id": 3, "annotator": "a", "outcome": "tie"}', "a.jsonl:1: id: input should be a valid string"),
        ("a.json", "{}", "not a list of Label Studio's tasks or Argilla's records"),
        ("a.json", "[3]", "a.json:1: neither a task of Label Studio's export as JSON"),
        ("a.json", "[", "a.json: not JSON; export it again"),
    ],
)
def test_what_is_no_label_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path)


def test_other_text_than_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("id,outcome,note\nc,tie,é\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a.csv: not UTF-8 \(byte 22\); save it as UTF-8"):
        read_labels(tmp_path)


def test_notes_about_the_labels_are_no_labels(tmp_path: Path) -> None:
    for name in (".gitkeep", "README.md", "LICENSE"):
        (tmp_path / name).write_text("x")
    assert read_labels(tmp_path) == []
    assert read_labels(tmp_path / "none") == []


# Label Studio, in the form of its export as JSON


def task(*results: dict[str, Any], **annotation: Any) -> dict[str, Any]:
    return {
        "id": 7,
        "data": {"id": "c", "prompt": "user: Hi", "first": "a", "second": "b"},
        "annotations": [
            {
                "id": 31,
                "completed_by": 5,
                "result": list(results),
                "was_cancelled": False,
                "ground_truth": False,
                "created_at": "2026-01-31T12:00:00.5Z",
                "updated_at": "2026-01-31T12:00:01.5Z",
                "lead_time": 4.2,
                **annotation,
            }
        ],
        "drafts": [],
        "predictions": [],
        "total_annotations": 1,
    }


def result(kind: str, name: str, **value: Any) -> dict[str, Any]:
    return {"id": "x", "type": kind, "from_name": name, "to_name": "prompt", "origin": "manual", "value": value}


CHOICE = result("choices", "outcome", choices=["second"])


def exported(folder: Path, *rows: Any) -> list[Label]:
    (folder / "export.json").write_text(json.dumps(rows))
    return [each.label for each in read_labels(folder)]


def test_label_studios_export_is_read(tmp_path: Path) -> None:
    note = result("textarea", "note", text=["too long"])
    by_mail = task(result("pairwise", "pw", selected="left"), completed_by={"id": 6, "email": "bob@example.com"})
    labels = exported(tmp_path, task(CHOICE, note), by_mail, task(was_cancelled=True, updated_at=None))
    assert [(each.annotator, each.outcome, each.note) for each in labels] == [
        ("5", "second", "too long"),
        ("bob@example.com", "first", ""),
        ("5", "skip", ""),
    ]
    assert {each.id for each in labels} == {"c"}
    assert labels[0].time == "2026-01-31T12:00:01.500000+00:00"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (task(), "export.json:1: an annotation without an outcome; label it, or delete it"),
        (
            task(result("rating", "stars", rating=4), CHOICE),
            "a result of the type 'rating'; use the labelling interface",
        ),
        (task(result("choices", "outcome", choices=["good"])), "outcome 'good'; it is one of"),
        (task(CHOICE, completed_by=None), "an annotation of nobody"),
        ({"id": 7, "data": {}, "annotations": [{}]}, r"not as Label Studio or Argilla export it \(no id\)"),
        ({"id": 7, "outcome": "first", "annotator": 5, "annotation_id": 3}, r"as JSON \(not JSON-MIN\)"),
    ],
)
def test_what_is_not_understood_in_label_studios_export_is_named(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        exported(tmp_path, row)


# Argilla, in the forms of its SDK 2.8


def record(**responses: Any) -> dict[str, Any]:
    fields = {"prompt": "user: Hi", "first": "a", "second": "b"}
    others: dict[str, Any] = {"metadata": {}, "suggestions": {}, "vectors": {}, "status": "pending", "_server_id": None}
    return {"id": "c", "fields": fields, "responses": responses, **others}


def test_argillas_records_are_read(tmp_path: Path) -> None:
    said = [{"value": "first", "user_id": "u1"}, {"value": "tie", "user_id": "u2"}]
    labels = exported(tmp_path, record(outcome=said, note=[{"value": "fine", "user_id": "u2"}]), record())
    assert [(each.annotator, each.outcome, each.note) for each in labels] == [
        ("u1", "first", ""),
        ("u2", "tie", "fine"),
    ]


def test_argillas_flat_records_say_what_was_submitted(tmp_path: Path) -> None:
    flat = {
        "id": "c",
        "status": "pending",
        "first": "a",
        "outcome.responses": ["first", "tie", "second"],
        "outcome.responses.users": ["u1", "u2", "u3"],
        "outcome.responses.status": ["submitted", "draft", "discarded"],
        "note.responses": ["fine"],
        "note.responses.users": ["u1"],
        "note.responses.status": ["submitted"],
    }
    empty = {**flat, "id": "d", **{key: None for key in flat if ".responses" in key}}
    labels = exported(tmp_path, flat, empty)
    assert [(each.annotator, each.outcome, each.note) for each in labels] == [
        ("u1", "first", "fine"),
        ("u3", "skip", ""),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            record(rating=[{"value": 3, "user_id": "u"}]),
            "a response to the question 'rating'; the questions are outcome",
        ),
        (record(note=[{"value": "x", "user_id": "u"}]), "a response without an outcome"),
        (record(outcome=[{"value": "first"}]), r"not as Label Studio or Argilla export it \(no user_id\)"),
        (record(outcome=[{"value": ["first"], "user_id": "u"}]), r"outcome \['first'\]; it is one of"),
    ],
)
def test_what_is_not_understood_in_argillas_records_is_named(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        exported(tmp_path, row)


# Agreement


def counted(*rows: tuple[str, str, str]) -> dict[tuple[str, str], Label]:
    return {(name, key): label(key, name, outcome) for name, key, outcome in rows}


def test_agreement_by_hand() -> None:
    """c: 2 of 2 agree, 1. d: three people, one pair of three agrees, 1/3. e and other: one person, a skip.

    The five labels on c and d are 4 first and 1 second: chance is 0.8^2 + 0.2^2 = 0.68.
    """
    rows = [("ann", "c", "first"), ("bob", "c", "first"), ("ann", "d", "first"), ("bob", "d", "first")]
    rows += [("eve", "d", "second"), ("ann", "e", "tie"), ("bob", "e", "skip"), ("bob", "other", "first")]
    found = summary(counted(*rows), ["c", "d", "e", "f"])
    assert found.pop("agreement") == pytest.approx(2 / 3)
    assert found.pop("kappa") == pytest.approx((2 / 3 - 0.68) / 0.32)
    assert found == {"people": 3, "comparisons": 4, "labels": 7, "ties": 1, "skipped": 1, "compared_twice": 2}


def test_kappa_is_missing_where_it_is_not_defined() -> None:
    assert "agreement" not in summary(counted(("ann", "c", "first")), ["c"])
    same = summary(counted(("ann", "c", "first"), ("bob", "c", "first")), ["c"])
    assert same["agreement"] == 1
    assert "kappa" not in same


def test_kappa_of_two_people_is_that_of_fleiss() -> None:
    """Two people, ten comparisons, six agreed on; 9 first and 11 second: chance (0.45^2 + 0.55^2)."""
    said = [("first", "first")] * 3 + [("second", "second")] * 3 + [("first", "second")] * 2 + [("second", "first")]
    said += [("second", "second")]
    rows = [(name, str(i), each[k]) for i, each in enumerate(said) for k, name in enumerate(("ann", "bob"))]
    found = summary(counted(*rows), map(str, range(10)))
    chance = 0.45**2 + 0.55**2
    assert found["kappa"] == pytest.approx((0.7 - chance) / (1 - chance))
