"""A judge on a server: its requests, how its replies are read, its failures, and that the key stays secret."""

import json
import logging
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from judge_server import Server, completion, prefers
from judging import contests_of, write_two_contests

from prefdag.check_params import check_params, load_params
from prefdag.config.judges import EndpointJudge
from prefdag.config.loss_options import LossOptions
from prefdag.lifecycle.errors import ParamsError, SourceError
from prefdag.runtime.artifacts import write_json
from prefdag.runtime.yaml import read_yaml
from prefdag.text import endpoint as http
from prefdag.text.evaluation import endpoint, judge
from stages import judge_text

CANARY = "sk-canary-0123456789"
PAIRS = contests_of([("a stone", "a rose"), ("x", "y"), ("same", "same")])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server. The project is an empty folder, and retries follow almost immediately."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(http, "BACKOFF", 0.01)
    monkeypatch.setattr(http, "RETRIES", 2)
    with Server().running() as own:
        yield own


def at(server: Server, **changes: Any) -> EndpointJudge:
    options = {"url": server.url, "model": "m", "max_tokens": 32, "timeout": 5.0, "parallel": 1} | changes
    return EndpointJudge(kind="endpoint", **options)


def test_the_judge_reads_calls_and_reasoning() -> None:
    call = {"type": "function", "function": {"name": "find", "arguments": {"q": "x"}}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "reasoning_content": "Look.", "tool_calls": [call]},
        {"role": "tool", "content": "1 found"},
    ]
    shown = endpoint.question(messages, "a", "b")
    assert 'assistant: Look.\n{"name": "find", "arguments": {"q": "x"}}\n\ntool: 1 found\n[End of Conversation' in shown


def test_both_orders_are_judged_and_equal_answers_are_not_sent(server: Server) -> None:
    verdicts = judge_all(server)
    assert verdicts["outcome"].tolist() == ["win", "tie", "tie"]
    assert verdicts["policy_first"].tolist() == ["policy", "tie", "tie"]
    assert verdicts["reference_first"].tolist() == ["policy", "tie", "tie"]
    assert verdicts["policy_first_reply"][0] == "I think ... [[A]]"
    assert verdicts["reference_first_reply"][0] == "I think ... [[B]]"
    assert len(server.asked) == 4
    assert set(server.paths) == {"/v1/chat/completions"}
    body = server.asked[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 32)
    prompts = [request["messages"][-1]["content"] for request in server.asked[:2]]
    assert "user: Say p0" in prompts[0]
    assert prompts[0].index("a rose") < prompts[0].index("a stone")
    assert prompts[1].index("a stone") < prompts[1].index("a rose")
    assert "Authorization" not in server.headers[0]


def judge_all(server: Server, **options: Any) -> pd.DataFrame:
    return endpoint.judge(PAIRS, at(server, **options), None)


def test_a_judge_that_prefers_a_position_gives_only_ties(server: Server) -> None:
    server.reply = lambda body: completion("[[A]]")
    verdicts = judge_all(server)
    assert verdicts["outcome"].tolist() == ["tie"] * 3
    assert verdicts["reference_first"].tolist()[:2] == ["reference", "reference"]
    assert judge.win_rates(PAIRS, verdicts)["greedy"]["win_rate"] == 0.5


@pytest.mark.parametrize(
    ("policy_first", "reference_first", "expected"),
    [
        ("policy", "policy", "win"),
        ("reference", "reference", "loss"),
        ("policy", "reference", "tie"),
        ("reference", "policy", "tie"),
        ("policy", "tie", "tie"),
        ("tie", "reference", "tie"),
        ("tie", "tie", "tie"),
        ("policy", "unread", "unread"),
        ("unread", "unread", "unread"),
    ],
)
def test_the_verdicts_of_both_orders_make_one_outcome(policy_first: str, reference_first: str, expected: str) -> None:
    assert endpoint.outcome(policy_first, reference_first) == expected


def test_the_last_verdict_counts() -> None:
    assert endpoint.verdict('It says "[[A]]" itself, so [[B]]', "x", "y") == "y"
    assert [endpoint.verdict(text, "x", "y") for text in ("", "[A]", "[[D]]", "both")] == ["unread"] * 4


def test_unreadable_replies_are_counted_and_kept(server: Server) -> None:
    answers = iter([completion("I like both."), completion(None), completion("[[A]]"), completion("[[B]]")])
    server.reply = lambda body: next(answers)
    verdicts = judge_all(server)
    assert verdicts["outcome"].tolist() == ["unread", "win", "tie"]
    assert verdicts["policy_first_reply"].tolist()[:2] == ["I like both.", "[[A]]"]
    rates = judge.win_rates(PAIRS, verdicts)["greedy"]
    assert (rates["n"], rates["unread"], rates["win_rate"]) == (2, 1, (1 + 1 / 2) / 2)


def test_a_busy_server_is_asked_again(server: Server) -> None:
    answers = iter(
        [
            (429, {}),
            (503, {}),
            completion("[[A]]"),
            (500, {}),
            completion("[[B]]"),
            completion("[[C]]"),
            completion("[[C]]"),
        ]
    )
    server.reply = lambda body: next(answers)
    assert judge_all(server)["outcome"].tolist() == ["win", "tie", "tie"]
    assert len(server.asked) == 7


def test_no_verdict_is_requested_twice_after_a_failure(server: Server) -> None:
    answers = iter([completion("[[A]]"), completion("[[B]]"), completion("[[A]]")])
    server.reply = lambda body: next(answers, (400, {}))
    with pytest.raises(SourceError, match=r"answers with status 400; check url and model.* are kept for the next run"):
        judge_all(server)
    assert len(server.asked) == 4
    server.reply = lambda body: completion("[[A]]")
    assert judge_all(server)["outcome"].tolist() == ["win", "tie", "tie"]
    assert len(server.asked) == 5
    judge_all(server)
    assert len(server.asked) == 5
    judge_all(server, model="another")
    judge_all(server, max_tokens=33)
    assert len(server.asked) == 5 + 4 + 4


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {"error": CANARY}), r"status 401; set PREFDAG_JUDGE_KEY"),
        ((404, {}), r"status 404; check url \(it ends before /chat/completions\) and model"),
        ((429, {}), r"status 429; the server is busy or its quota is used up"),
        ((302, {}), r"status 302"),
        ((200, b"<html>hello</html>"), r"does not answer in the form of /chat/completions; check url"),
        ((200, []), "does not answer in the form"),
        ((200, {"choices": []}), "does not answer in the form"),
        ((200, {"choices": [{"message": {"content": [1]}}]}), "does not answer in the form"),
        ((200, b"\xff\xfe"), "does not answer in the form"),
    ],
)
def test_a_bad_server_is_a_one_line_error(reply: tuple[int, Any], message: str, server: Server) -> None:
    server.reply = lambda body: reply
    with pytest.raises(SourceError, match=message) as caught:
        endpoint.judge(PAIRS, at(server), CANARY)
    assert str(caught.value).startswith(f"params.yaml: judge_text.judge.url: {server.url}/chat/completions ")
    assert "\n" not in str(caught.value)
    assert CANARY not in repr(caught.value)
    assert "/elsewhere" not in server.paths
    assert not list(Path(".prefdag").rglob("*.json"))


def test_a_dead_server_is_a_one_line_error(server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(SourceError, match=r"cannot be reached \(connection refused\); start it, or check url"):
        judge_all(server, url=url)


@pytest.mark.slow
def test_a_server_that_hangs_times_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "RETRIES", 1)
    server.reply = lambda body: time.sleep(1) or completion("[[A]]")
    with pytest.raises(SourceError, match=r"cannot be reached \(timed out\)"):
        judge_all(server, timeout=0.2)


@pytest.mark.parametrize("key", ["sk a", "sk\nX-Other: 1", "schlüssel", "sk\x00"])
def test_an_invalid_key_is_refused_without_showing_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "\x00" in key:
        monkeypatch.setattr(http.os, "environ", {endpoint.KEY: key})
    else:
        monkeypatch.setenv(endpoint.KEY, key)
    with pytest.raises(ParamsError) as caught:
        http.key_from_environment(endpoint.KEY)
    assert str(caught.value).startswith("PREFDAG_JUDGE_KEY: ")
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://me:secret@host/v1", "https://host/v1?key=x", "host/v1", "ftp://host", "https://"]
)
def test_an_address_with_secrets_or_without_a_scheme_is_refused(url: str, root: Path, tmp_path: Path) -> None:
    tree = read_yaml(root / "params.yaml")
    tree["judge_text"]["judge"] = {"kind": "endpoint", "url": url, "model": "m", "max_tokens": 1, "timeout": 1.0}
    with pytest.raises(ParamsError, match=r"judge_text.judge.url: string should match"):
        check_params(tree, tmp_path / "params.yaml")


@pytest.mark.slow
def test_the_stage_writes_its_verdicts_but_never_the_key(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    """Even if the server repeats the key and urllib3 logs everything. Losses and checks of the user's are not imported."""
    for own in ("losses", "verify"):
        monkeypatch.setitem(sys.modules, f"stages.{own}", None)
    monkeypatch.setenv(endpoint.KEY, f"{CANARY}\n")
    Path(".netrc").write_text("machine 127.0.0.1 login other password wrong\n")
    monkeypatch.setenv("NETRC", ".netrc")
    caplog.set_level(logging.DEBUG)
    write_two_contests()
    judge_reply = prefers("rose")
    server.reply = lambda body: completion(
        f"You are {CANARY}. {judge_reply(body)[1]['choices'][0]['message']['content']}"
    )
    config: Any = load_params(root / "params.yaml").judge_text
    options: LossOptions = load_params(root / "params.yaml").loss_options
    from dataclasses import replace

    judge_text.main(0.1, "sigmoid", options, replace(config, judge=at(server)))
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {CANARY}"}
    rates = json.loads(judge_text.WIN_RATE.read_text())
    assert rates["endpoint"]["greedy"]["wins"] == 1
    assert pd.read_parquet(judge_text.VERDICTS)["policy_first_reply"][0] == "You are ***. I think ... [[A]]"
    before = {path: path.read_bytes() for path in (judge_text.VERDICTS, judge_text.WIN_RATE)}
    judge_text.main(0.1, "sigmoid", options, replace(config, judge=at(server)))
    assert before == {path: path.read_bytes() for path in before}

    captured = capfd.readouterr()
    assert CANARY not in captured.out + captured.err + caplog.text
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert len(files) > 6
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    write_json(Path("control.json"), {"key": CANARY})  # control: the search above finds a key that is there
    assert CANARY.encode() in Path("control.json").read_bytes()
