"""A judge on a server that compares by principles, one by one."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from judge_server import Server, completion
from judging import contests_of, write_two_contests
from paths import ROOT

from prefdag.check_params import load_params
from prefdag.config.judges import EndpointJudge
from prefdag.config.sources import PathSource
from prefdag.lifecycle.errors import ParamsError, SourceError
from prefdag.runtime.artifacts import sha256
from prefdag.text import endpoint as http
from prefdag.text.evaluation import endpoint, judge
from prefdag.text.evaluation.principles import read_principles
from stages import judge_text

ROSE_FIRST = "rose: Name a rose.\nbrief: Be brief.\n"


def by_principle(body: dict[str, Any]) -> tuple[int, Any]:
    """Judges by the one principle that it is told: a rose, or fewer characters; if it is told to be kind, it forgets to."""
    told, asked = (message["content"] for message in body["messages"])
    first, second = (part.split("]\n")[1].split("\n[End")[0] for part in asked.split("[Start of Assistant")[1:])
    if "kind" in told:
        return completion("Who knows?")
    key = (lambda text: "rose" in text) if "rose" in told else (lambda text: -len(text))
    return completion(f"[[{'A' if key(first) > key(second) else 'B' if key(first) < key(second) else 'C'}]]")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(http, "RETRIES", 0)
    own = Server()
    own.reply = by_principle
    with own.running():
        yield own


def source_of(text: str) -> PathSource:
    path = Path("principles.yaml")
    path.write_text(text)
    return PathSource(kind="path", path=str(path), sha256=sha256(path))


def at(server: Server, text: str, **changes: Any) -> EndpointJudge:
    options = {"url": server.url, "model": "m", "max_tokens": 32, "timeout": 5.0, "parallel": 1} | changes
    return EndpointJudge(kind="endpoint", principles=source_of(text), **options)


# Reference and policy: the rose decides; both have none, so the shorter one; nothing does; equal, which nobody judges.
PAIRS = contests_of([("a stone", "a long, long rose"), ("a stone", "x"), ("ab", "ba"), ("same", "same")])


def test_in_order_the_first_principle_that_tells_answers_apart_decides(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    verdicts = endpoint.judge(PAIRS, at(server, ROSE_FIRST), None)
    assert verdicts["outcome"].tolist() == ["win", "win", "tie", "tie"]
    assert verdicts["decided_by"].tolist() == ["rose", "brief", "", ""]
    assert verdicts["points"].tolist() == [1, 1, 0.5, 0.5]
    first, second = verdicts["principles"][:2]
    assert [each["name"] for each in first] == ["rose"]  # brevity would decide otherwise, and is not paid for
    assert [(each["name"], each["outcome"]) for each in second] == [("rose", "tie"), ("brief", "win")]
    assert (second[1]["policy_first_reply"], second[1]["reference_first_reply"]) == ("[[A]]", "[[B]]")
    told = [body["messages"][0]["content"] for body in server.asked]
    assert ["Name a rose." in each for each in told] == [True, True, *[True, True, False, False] * 2]
    assert all(each.endswith('"[[C]]" for a tie.') for each in told)
    assert "4 contests, up to 12 requests (both orders, principles: 2); 0 more replies are kept" in caplog.text
    swapped = endpoint.judge(PAIRS, at(server, "brief: Be brief.\nrose: Name a rose.\n"), None)
    assert swapped["outcome"].tolist() == ["loss", "win", "tie", "tie"]
    assert swapped["decided_by"].tolist() == ["brief", "brief", "", ""]


def test_their_mean_is_of_all(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    verdicts = endpoint.judge(PAIRS, at(server, f"{ROSE_FIRST}again: Be brief, please.", combine="mean"), None)
    assert verdicts["points"].tolist() == pytest.approx([1 / 3, (1 / 2 + 1 + 1) / 3, 1 / 2, 1 / 2])
    assert verdicts["outcome"].tolist() == ["loss", "win", "tie", "tie"]
    assert set(verdicts["decided_by"]) == {""}
    assert "4 contests, 18 requests (both orders, principles: 3); 0 more replies are kept" in caplog.text
    assert len(server.asked) == 3 * 2 * 3
    alone = endpoint.judge(PAIRS, at(server, "rose: Name a rose.", combine="mean"), None)
    assert alone["decided_by"].tolist() == ["rose", "", "", ""]
    assert "4 contests, 0 requests (both orders, principles: 1); 6 more replies are kept" in caplog.text


@pytest.mark.parametrize(("combine", "asked"), [("in_order", 2), ("mean", 4)])
def test_what_a_principle_leaves_unread_a_later_one_does_not_decide(server: Server, combine: str, asked: int) -> None:
    verdicts = endpoint.judge(PAIRS[:1], at(server, f"kind: Be kind.\n{ROSE_FIRST[:19]}", combine=combine), None)
    assert (verdicts["outcome"][0], verdicts["decided_by"][0]) == ("unread", "")
    assert pd.isna(verdicts["points"][0])
    assert len(server.asked) == asked
    assert verdicts["principles"][0][0]["policy_first_reply"] == "Who knows?"


def test_a_killed_run_asks_for_no_verdict_twice(server: Server) -> None:
    config = at(server, ROSE_FIRST)
    server.reply = lambda body: by_principle(body) if len(server.asked) <= 4 else (400, {})
    with pytest.raises(SourceError, match="Replies received so far are kept"):
        endpoint.judge(PAIRS, config, None)
    server.reply = by_principle
    server.asked.clear()
    assert endpoint.judge(PAIRS, config, None)["decided_by"].tolist() == ["rose", "brief", "", ""]
    assert len(server.asked) == 2 + 4 + 4 - 4


# The file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- Be kind.", r"^principles.yaml: expected a mapping of keys to values at the top level$"),
        ("{}", r"^principles.yaml: \(top level\): dictionary should have at least 1 item"),
        ("kind: 3", r"^principles.yaml: kind: input should be a valid string, not 3$"),
        ("kind: ''", r"^principles.yaml: kind: string should have at least 1 character, not ''$"),
        ("kind: Be kind.\nkind: Be good.", r'^principles.yaml: not valid YAML: .*duplicate key "kind"'),
    ],
)
def test_a_mistake_in_the_file_is_one_line(text: str, message: str, server: Server) -> None:
    with pytest.raises(ParamsError, match=message) as caught:
        endpoint.judge(PAIRS, at(server, text), None)
    assert "\n" not in str(caught.value)
    assert not server.asked


def test_the_file_has_the_pinned_content(server: Server) -> None:
    key = "judge_text.judge.principles"
    source = source_of(ROSE_FIRST)
    assert list(read_principles(source, key)) == ["rose", "brief"]
    Path("principles.yaml").write_text("brief: Be brief.")
    with pytest.raises(SourceError, match=rf"^params.yaml: {key}: sha256 is .*, or run `prefdag pin {key}`$"):
        read_principles(source, key)
    with pytest.raises(
        ParamsError, match=rf"^params.yaml: {key}.sha256: null, .*; `prefdag pin judge_text` writes it$"
    ):
        read_principles(replace(source, sha256=None), key)
    Path("several").mkdir()
    for name in "ab":
        Path("several", name).write_text("kind: Be kind.")
    several = PathSource(kind="path", path="several", sha256=sha256(Path("several")))
    with pytest.raises(ParamsError, match=rf"^params.yaml: {key}.path: 'several' is a folder; name the file$"):
        read_principles(several, key)


@pytest.mark.slow
def test_the_stage_writes_which_principle_decided(server: Server) -> None:
    write_two_contests()
    params: Any = load_params(ROOT / "params.yaml")
    config = replace(params.judge_text, judge=at(server, ROSE_FIRST))
    judge_text.main(0.1, "sigmoid", params.loss_options, config)
    table = pd.read_parquet(judge_text.VERDICTS)
    assert table["decided_by"].tolist() == ["rose", ""]
    assert [each["name"] for each in table["principles"][1]] == ["rose", "brief"]
    assert json.loads(judge_text.WIN_RATE.read_text())["endpoint"]["greedy"]["wins"] == 1
    before = {path: path.read_bytes() for path in (judge_text.VERDICTS, judge_text.WIN_RATE)}
    asked = len(server.asked)
    judge_text.main(0.1, "sigmoid", params.loss_options, config)
    assert before == {path: path.read_bytes() for path in before}
    assert len(server.asked) == asked


def test_without_principles_verdicts_are_as_before(server: Server) -> None:
    config = replace(at(server, ROSE_FIRST), principles=None)
    verdicts = endpoint.judge(PAIRS, config, None)
    assert list(verdicts) == [
        *judge.KEYS,
        "outcome",
        *(f"{side}_first{end}" for side in ("policy", "reference") for end in ("", "_reply")),
    ]
    assert "helpfulness, relevance, accuracy" in server.asked[0]["messages"][0]["content"]
