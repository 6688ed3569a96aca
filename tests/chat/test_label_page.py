"""The labelling page in a real browser: keys, notes, ties, undo, two persons at once, and that no label is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import serving
from comparing import HOSTILE, four

from prefdag.chat import labelling
from prefdag.chat.labelling import Labels, make_app, side
from prefdag.labelling.comparisons import Comparison
from prefdag.labelling.forms import write_forms
from prefdag.labelling.labels import latest, read_labels

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browses = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
BY_ID = {each.id: each for each in four()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "round-1"


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with serving(make_app(Labels(folder, four()))) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def faults() -> list[str]:
    """The browsers' console messages and errors."""
    return []


@pytest.fixture
def opened(address: str, browser: Any, faults: list[str]) -> Iterator[Callable[[str], Any]]:
    """Opens the page of a person. When the test ends, there must be no error and no request to another address."""
    requests: list[str] = []
    pages: list[Any] = []

    def open_page(query: str) -> Any:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.set_default_timeout(60_000)
        page.goto(f"{address}/{query}")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert faults == []
    assert all(url.startswith(address + "/") for url in requests), requests


def shown(page: Any, done: int) -> Comparison:
    """What the page shows once a person has labelled `done` comparisons, told by its texts."""
    page.get_by_text(f": {done} of 4").wait_for()
    texts = {page.locator(name).text_content() for name in ("#left", "#right")}
    (found,) = (each for each in four() if {each.first, each.second} == texts)
    return found


def saved(folder: Path) -> dict[tuple[str, str], str]:
    return {key: label.outcome for key, label in latest(read_labels(folder)).items()}


@browses
def test_keys_label_with_a_note_and_undo_takes_back(opened: Any, folder: Path) -> None:
    page = opened("?annotator=ann")
    labelled = []
    for done, key in enumerate(("ArrowLeft", "t", "ArrowRight")):
        labelled.append(shown(page, done))
        if key == "t":
            page.keyboard.press("n")
            page.keyboard.type("both are short, s")  # keys write into the note, and label nothing
            page.keyboard.press("Enter")
        page.keyboard.press(key)
    shown(page, 3)
    one, two, three = labelled
    other = {"first": "second", "second": "first"}
    expected = {one.id: side("ann", one), two.id: "tie", three.id: other[side("ann", three)]}
    assert saved(folder) == {("ann", key): outcome for key, outcome in expected.items()}
    notes = {each.label.id: (each.label.note, each.label.left) for each in read_labels(folder)}
    assert notes[two.id] == ("both are short, s", side("ann", two))
    assert notes[one.id][0] == ""
    for done, taken in ((2, three), (1, two)):
        page.keyboard.press("u")
        assert shown(page, done) == taken
    assert page.get_by_label("Note").input_value() == "both are short, s"
    assert list(saved(folder)) == [("ann", one.id)]
    page.get_by_role("button", name="I cannot tell").click()
    shown(page, 2)
    assert saved(folder)["ann", two.id] == "skip"
    assert len(read_labels(folder)) == 6  # the history stays


@browses
def test_a_reload_goes_on_and_the_end_is_said(opened: Any, folder: Path) -> None:
    page = opened("?annotator=ann")
    first = shown(page, 0)
    page.keyboard.press("s")
    shown(page, 1)
    page.reload()
    second = shown(page, 1)
    assert second != first
    page.reload()
    assert shown(page, 1) == second
    for done in (1, 2, 3):
        shown(page, done)
        page.get_by_role("button", name="Tie").click()
    page.get_by_text("You have labelled all comparisons").wait_for()
    assert len(saved(folder)) == 4
    page.keyboard.press("ArrowLeft")  # there is nothing to label
    page.keyboard.press("u")
    shown(page, 3)
    assert len(saved(folder)) == 3


@browses
def test_two_persons_label_at_once(opened: Any, folder: Path) -> None:
    """Each has a file, and both see all comparisons; the count is of both."""
    pages = {name: opened("") for name in ("ann", "bob")}
    for name, page in pages.items():
        page.get_by_label("Your name").fill(name.upper())
        page.keyboard.press("Enter")
    seen: dict[str, list[str]] = {"ann": [], "bob": []}
    for done in range(4):
        for name, page in pages.items():
            seen[name].append(shown(page, done).id)
            page.keyboard.press("ArrowLeft" if name == "ann" else "t")
    for page in pages.values():
        page.get_by_text("You have labelled all comparisons").wait_for()
    assert set(seen["ann"]) == set(seen["bob"]) == set(BY_ID)
    assert sorted(path.name for path in folder.iterdir()) == ["ann.jsonl", "bob.jsonl"]
    found = saved(folder)
    assert len(found) == 8
    for (name, key), outcome in found.items():
        assert outcome == (side("ann", BY_ID[key]) if name == "ann" else "tie")
    assert pages["bob"].locator("#progress").text_content() == "bob: 4 of 4; labelled by anybody: 4"


@browses
def test_text_is_shown_and_never_run_also_on_a_phone(opened: Any) -> None:
    page = opened("?annotator=ann")
    done = 0
    while HOSTILE not in (shown(page, done).first, shown(page, done).second):
        page.keyboard.press("s")
        done += 1
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    left, right = (page.locator(name).bounding_box() for name in ("#left", "#right"))
    assert left["y"] + left["height"] <= right["y"]
    assert page.evaluate("window.hit") is None
    assert page.locator("main :is(script, img, b)").count() == 0
    assert page.locator(".turn .text").text_content() == "Is p <b>?"
    # What a screen reader is told
    assert page.evaluate("document.activeElement.id") == "heading"
    assert page.get_by_role("heading", name=f"Prompt {done + 1} of 4").count() == 1
    assert page.get_by_role("region", name="Left").count() == 1
    for name in ("Left is better", "Tie", "Right is better", "I cannot tell", "Undo"):
        assert page.get_by_role("button", name=name).count() == 1
    page.get_by_label("Keys", exact=True).uncheck()
    page.keyboard.press("s")
    page.wait_for_timeout(200)
    shown(page, done)


@browses
def test_a_label_that_is_not_saved_is_not_shown_as_saved(
    opened: Any, folder: Path, faults: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = opened("?annotator=ann")
    first = shown(page, 0)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(labelling, "append", full)
        page.keyboard.press("ArrowLeft")
        page.get_by_role("alert").get_by_text("the label is not saved: No space left on device").wait_for()
    assert shown(page, 0) == first
    assert saved(folder) == {}
    page.keyboard.press("ArrowLeft")
    shown(page, 1)
    assert page.locator("#error").text_content() == ""
    assert len(faults) == 1
    assert "500" in faults.pop()  # the browser notes it in its console


def serve(folder: Path) -> "tuple[subprocess.Popen[str], str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "prefdag", "label", "1", "--port", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "DVC_ROOT"},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()[0]


def test_a_killed_server_has_lost_no_label(tmp_path: Path) -> None:
    """Killed right after it replied; another server of the same round is refused while it runs."""
    import httpx

    write_forms(tmp_path / "labels" / "to_label" / "round-1", four())
    process, url = serve(tmp_path)
    try:
        state = httpx.get(f"{url}/v1/comparisons?annotator=ann", trust_env=False).json()
        label = {"annotator": "ann", "id": state["comparison"]["id"], "outcome": "tie"}
        assert httpx.post(f"{url}/v1/labels", json=label, trust_env=False).json()["done"] == 1
        refused = subprocess.run(
            [sys.executable, "-m", "prefdag", "label", "1", "--port", "0"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 1
        assert "labels/round-1: another `prefdag label` serves it; use its page, or stop it" in refused.stderr
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    process, url = serve(tmp_path)
    try:
        again = httpx.get(f"{url}/v1/comparisons?annotator=ann", trust_env=False).json()
        assert again["done"] == 1
        assert again["comparison"]["id"] != state["comparison"]["id"]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    (line,) = (tmp_path / "labels" / "round-1" / "ann.jsonl").read_text().splitlines()
    assert json.loads(line)["outcome"] == "tie"
