"""The server of the labelling page: what it shows whom, and which requests it refuses."""

from pathlib import Path
from typing import Any

import pytest
from comparing import four
from fastapi.testclient import TestClient

from prefdag.chat.guard import HEADERS
from prefdag.chat.labelling import Labels, make_app, only_server, side
from prefdag.labelling.labels import read_labels
from prefdag.lifecycle.errors import PrefdagError

ORIGIN = "http://127.0.0.1:7860"
IDS = [each.id for each in four()]


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    return Labels(tmp_path, four())


@pytest.fixture
def client(labels: Labels) -> TestClient:
    return TestClient(make_app(labels), base_url=ORIGIN)


def shown(client: TestClient, name: str) -> Any:
    return client.get("/v1/comparisons", params={"annotator": name}).json()


def say(client: TestClient, name: str, key: str, outcome: str = "tie", **others: Any) -> Any:
    return client.post("/v1/labels", json={"annotator": name, "id": key, "outcome": outcome, **others})


def test_nobody_sees_who_answered_or_what_others_said(client: TestClient) -> None:
    say(client, "bob", IDS[0], note="secret")
    state = shown(client, "ann")
    assert set(state) == {"done", "total", "labelled", "comparison"}
    assert (state["done"], state["total"], state["labelled"]) == (0, 4, 1)
    assert set(state["comparison"]) == {"id", "turns", "left", "right", "note"}
    assert state["comparison"]["note"] == ""


def test_a_person_sees_first_what_nobody_has_labelled(client: TestClient) -> None:
    for key in IDS[:2]:
        say(client, "ann", key)
    seen = []
    for _ in IDS:
        seen.append(shown(client, "bob")["comparison"]["id"])
        say(client, "bob", seen[-1])
    assert set(seen[:2]) == set(IDS[2:])
    assert set(seen[2:]) == set(IDS[:2])
    assert shown(client, "bob")["comparison"] is None


def test_comparisons_of_a_prompt_come_together(client: TestClient) -> None:
    prompts = {each.id: each.prompt_id for each in four()}
    seen = []
    for _ in IDS:
        key = shown(client, "ann")["comparison"]["id"]
        seen.append(prompts[key])
        say(client, "ann", key)
    assert seen in (["p", "p", "p", "q"], ["q", "p", "p", "p"])


def test_the_sides_are_drawn_and_stay(client: TestClient, tmp_path: Path) -> None:
    """Each answer is on the left about half of the time; a label says which one was."""
    drawn = [side(f"a{i}", each) for i in range(100) for each in four()]
    assert 160 < drawn.count("first") < 240
    for each in four():
        left = side("ann", each)
        assert side("ann", each) == left
        say(client, "ann", each.id, "left")
        say(client, "bob", each.id, "right")
    for read in read_labels(tmp_path):
        assert (read.label.outcome == read.label.left) == (read.label.annotator == "ann")
        assert read.label.time.endswith("+00:00")


def test_undo_takes_back_one_label_after_the_other(client: TestClient, labels: Labels) -> None:
    say(client, "ann", IDS[0], note="why\n\u202e?")
    say(client, "ann", IDS[1])
    say(client, "bob", IDS[2])
    say(client, "ann", IDS[0], note="why\n\u202e?")  # corrected, and so the last one
    undone = client.post("/v1/undo", json={"annotator": "ann"}).json()
    assert (undone["comparison"]["id"], undone["comparison"]["note"]) == (IDS[0], "why  ?")
    assert client.post("/v1/undo", json={"annotator": "ann"}).json()["comparison"]["id"] == IDS[1]
    refused = client.post("/v1/undo", json={"annotator": "ann"})
    assert (refused.status_code, refused.json()["error"]["message"]) == (409, "there is no label of yours to undo")
    assert list(labels.counted) == [("bob", IDS[2])]
    assert list(Labels(labels.folder, four()).counted) == [("bob", IDS[2])]


@pytest.mark.parametrize("name", ["", "Ann", "../ann", "a/b", "-ann", ".", "é", "a" * 33, "a\n", "con fusion"])
def test_a_name_is_the_name_of_a_file_in_the_folder(name: str, client: TestClient, tmp_path: Path) -> None:
    assert client.get("/v1/comparisons", params={"annotator": name}).status_code == 400
    refused = say(client, name, IDS[0])
    assert refused.status_code == 400
    assert "a name has the letters a to z, digits, - and _" in refused.json()["error"]["message"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"id": "other"}, 404),
        ({"outcome": "first"}, 400),
        ({"outcome": "undone"}, 400),
        ({"note": "x" * 2001}, 400),
        ({"score": 1}, 400),
    ],
)
def test_what_is_no_label_is_refused(change: Any, status: int, client: TestClient, tmp_path: Path) -> None:
    reply = (
        say(client, name="ann", key=IDS[0])
        if not change
        else client.post("/v1/labels", json={"annotator": "ann", "id": IDS[0], "outcome": "tie", **change})
    )
    assert reply.status_code == status
    assert reply.json()["error"]["message"]
    assert not list(tmp_path.iterdir())


def test_the_page_is_guarded_as_the_chat_is(client: TestClient, tmp_path: Path) -> None:
    body = {"annotator": "ann", "id": IDS[0], "outcome": "tie"}
    assert client.post("/v1/labels", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/v1/labels", json=body, headers={"Host": "evil.example"}).status_code == 400
    assert client.post("/v1/labels", data=body).status_code == 415
    assert not list(tmp_path.iterdir())
    for path in ("/", "/label.js", "/label.css", "/chat.css", "/icon.svg", "/v1/comparisons?annotator=ann"):
        reply = client.get(path)
        assert reply.status_code == 200, path
        assert {name: reply.headers[name] for name in HEADERS} == dict(HEADERS)
    for path in ("/chat.js", "/label.html", "/v1/models", "/..%2flabelling.py"):
        assert client.get(path).status_code == 404, path


def test_labels_of_other_comparisons_stay_where_they_are(tmp_path: Path) -> None:
    labels = Labels(tmp_path, four()[:2])
    TestClient(make_app(labels), base_url=ORIGIN).post(
        "/v1/labels", json={"annotator": "ann", "id": IDS[0], "outcome": "tie"}
    )
    other = Labels(tmp_path, four()[2:])
    assert other.state("ann", None)["done"] == 0
    assert len(read_labels(tmp_path)) == 1


def test_one_server_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with only_server("round-1"):
        with only_server("round-2"):
            pass
        with (
            pytest.raises(PrefdagError, match="labels/round-1: another `prefdag label` serves it"),
            only_server("round-1"),
        ):
            pass
    with only_server("round-1"):
        pass
