"""A server as the sampler of answer_text: the local sampler's tokens, wrong models, hostile replies, runs that are cut off."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from answer_settings import answer_settings
from completion_server import CompletionServer, Handler, send_json, write
from dialogues import user
from export_project import write_policy, write_reference
from format_settings import format_settings
from paths import ROOT
from tiny_models import ADAPTERS, disturb, with_adapter, write_model

from prefdag.check_params import load_params
from prefdag.config.answer_text import AnswerText, EndpointSampler
from prefdag.config.round import ServedPolicy
from prefdag.config.samplers import LocalSampler
from prefdag.lifecycle.errors import ParamsError, SourceError
from prefdag.runtime.artifacts import read_json, sha256
from prefdag.text import endpoint as http
from prefdag.text import trainable
from prefdag.text.endpoint import Endpoint
from prefdag.text.generation import endpoint as sampling
from prefdag.text.generation.endpoint import KEY, ServedModel, seed_of
from prefdag.text.model import load, load_models
from prefdag.tokenizer.tokenizer import ChatTokenizer
from stages import answer_text, ref_answers

pytestmark = pytest.mark.slow

CANARY = "sk-canary-0123456789"
FORMAT = format_settings(template="chat")
TOKENS = 6
WORDS = ["hi", "is it a dog", "why", "hi", "tell me more"]  # prompts
Send = Callable[[Handler, dict[str, Any]], None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project up to dpo_text: a tiny reference, a policy far from it, and five test pairs, two of them with one prompt."""
    folder = tmp_path_factory.mktemp("project")
    reference = write_reference(folder / answer_text.REFERENCE)
    write_model(folder / answer_text.BASE, "llama", seed=3, vocabulary=263)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_policy(answer_text.REFERENCE, "lora", answer_text.POLICY)
    tokenizer = ChatTokenizer(reference, "chat")
    rows = [
        {
            "id": f"p{number}",
            "prompt_ids": tokenizer.prompt(user(word)).ids,
            **{f"{side}_ids": tokenizer.response(f"{side} {word}").ids for side in ("chosen", "rejected")},
            **{f"{side}_truncated": False for side in ("chosen", "rejected")},
            "preference": 1.0,
        }
        for number, word in enumerate(WORDS)
    ]
    (folder / answer_text.PAIRS).mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / answer_text.PAIRS / "test.parquet")
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `finished`, the current directory; retries follow almost immediately."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    answer_text.CONTROL.mkdir()
    (answer_text.CONTROL / "off").touch()
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setattr(http, "BACKOFF", 0.01)
    monkeypatch.setattr(http, "RETRIES", 1)
    return folder


@pytest.fixture(scope="module")
def models(finished: Path) -> dict[str, Any]:
    """The project's models, as a server has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)  # the adapter names its base
        return load_models(answer_text.REFERENCE, answer_text.POLICY, packed=False)._asdict()


@pytest.fixture
def server(project: Path, models: dict[str, Any]) -> Iterator[CompletionServer]:
    """A server of the project's own models."""
    with CompletionServer(models, ChatTokenizer(project / answer_text.REFERENCE, "chat").decode).running() as running:
        yield running


def settings(server: CompletionServer | None = None, **changes: Any) -> AnswerText:
    """The section answer_text, with this server as the sampler, else the local one; `changes` are the sampler's."""
    options = {"reference": "reference", "policy": "policy", "timeout": 20.0, "tolerance": 0.001, "parallel": 3}
    sampler = (
        EndpointSampler(kind="endpoint", url=server.url, **(options | changes))
        if server
        else LocalSampler(kind="local")
    )
    return answer_settings(sampler=sampler, max_new_tokens=TOKENS, temperature=0.9, top_p=0.8)


def answer(server: CompletionServer | None = None, **changes: Any) -> pd.DataFrame:
    ref_answers.main(FORMAT, settings(server, **changes))
    answer_text.main(FORMAT, settings(server, **changes))
    return pd.read_parquet(answer_text.ANSWERS)


def greedy(table: pd.DataFrame) -> list[tuple[Any, ...]]:
    rows = table[table["decoding"] == "greedy"]
    columns = (rows[name] for name in ("id", "model", "text", "tokens", "ended"))
    return [*zip(*columns, rows["ids"].map(tuple), strict=True)]


def written() -> list[Path]:
    """Kept replies and outputs."""
    return [path for path in (*Path(".prefdag").rglob("*"), *Path("reports").rglob("*")) if path.is_file()]


# The same answers


def test_the_server_gives_the_tokens_of_the_local_sampler(server: CompletionServer) -> None:
    local = answer()
    statistics = read_json(answer_text.STATISTICS)
    assert "sampler" not in statistics
    served = answer(server)
    assert greedy(served) == greedy(local)
    assert len(set(local["text"])) > 8  # the models do answer, each in its own way
    assert served[local.columns].dtypes.to_dict() == local.dtypes.to_dict()

    assert len(server.asked) == 4 * 4  # four prompts, two models, two decodings
    for body in server.asked:
        assert body["prompt"] in served["prompt_ids"].map(list).tolist()
        assert (body["max_tokens"], body["ignore_eos"], body["repetition_penalty"]) == (TOKENS, True, 1.0)
        assert body["stop_token_ids"] == list(ChatTokenizer(answer_text.REFERENCE, "chat").stop_ids)
        assert (body["temperature"], body["top_p"]) in ((0.0, 1.0), (0.9, 0.8))
    assert "Authorization" not in server.headers[0]
    seeds = {row["id"]: row["seed"] for row in served.to_dict("records")}
    assert seeds["p1"] == seed_of([0, *b"p1"]) == 153938524
    assert sorted({body["seed"] for body in server.asked}) == sorted(seeds.values())  # the same for both models

    replies = served["reply"].map(json.loads)
    assert [reply["token_ids"] for reply in replies] == served["ids"].map(list).tolist()
    assert set(replies[0]) == {
        *("text", "token_ids", "finish_reason", "stop_reason", "completion_tokens", "system_fingerprint")
    }
    sampler = read_json(answer_text.STATISTICS).pop("sampler")
    assert {name: sampler[name] for name in ("url", "server", "version", "reencoded")} == {
        "url": server.url,
        "server": "uvicorn",
        "version": "0.99.0",
        "reencoded": 0,
    }
    for name, folder in (("reference", answer_text.REFERENCE), ("policy", answer_text.POLICY)):
        assert sampler[name]["sha256"] == sha256(folder)
        assert (sampler[name]["id"], sampler[name]["root"]) == (name, f"/models/{name}")
        assert sampler[name]["difference"] < 1e-4
        assert sampler[name]["not_told_from"] == []
    responses = pd.read_parquet(answer_text.PAIRS / "test.parquet")["chosen_ids"]
    assert sampler["checked_tokens"] == responses.map(len).sum()


def test_the_same_run_asks_nothing_again_and_writes_the_same_bytes(server: CompletionServer) -> None:
    answer(server)
    before = {path: path.read_bytes() for path in (answer_text.ANSWERS, answer_text.STATISTICS)}
    asked = len(server.asked)
    answer(server)
    assert len(server.asked) == asked
    assert before == {path: path.read_bytes() for path in before}


def test_only_the_first_process_asks(server: CompletionServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_text, "rank", lambda: 1)
    answer_text.main(FORMAT, settings(server))
    assert (server.asked, written()) == ([], [])


# Other models


def other_model(project: Path) -> Any:
    return load(write_model(project / "other", "llama", seed=7, vocabulary=263), packed=False)


@pytest.mark.parametrize("name", ["reference", "policy"])
def test_a_server_of_another_model_is_refused(name: str, server: CompletionServer, project: Path) -> None:
    server.models[name] = other_model(project)
    folder = {"reference": "models/reference", "policy": "models/policy"}[name]
    message = (
        rf"model '{name}' at {server.url}: is not {folder}: its log-probabilities differ by \d.* nats per token; serve"
    )
    with pytest.raises(SourceError, match=message) as caught:
        answer(server)
    assert "\n" not in str(caught.value)
    assert (server.asked, written()) == ([], [])


def test_models_in_each_others_place_are_refused_at_any_tolerance(server: CompletionServer) -> None:
    message = r"is nearer to models/policy than to models/reference"
    with pytest.raises(SourceError, match=message):
        answer(server, reference="policy", policy="reference", tolerance=1e9)
    with pytest.raises(SourceError, match=r"model 'reference' .* is nearer to models/reference than to models/policy"):
        answer(server, reference="reference", policy="reference", tolerance=1e9)
    assert written() == []


def test_the_base_model_in_the_place_of_the_reference_is_refused(server: CompletionServer) -> None:
    server.models["reference"] = load(answer_text.BASE, packed=False)
    with pytest.raises(SourceError, match=r"model 'reference' .* is nearer to models/base than to models/reference"):
        answer(server, tolerance=1e9)


@pytest.mark.parametrize(
    ("noise", "apart", "outcome"),
    [
        (0.0, 0.0, "hidden"),  # the two are the same
        (0.05, 0.1, "told"),
        (0.05, 0.001, "hidden"),
        (0.05, -0.1, "refused"),  # it serves the other one
        (0.05, -0.001, "hidden"),
    ],
)
def test_models_are_told_apart_as_far_as_rounding_lets(
    noise: float, apart: float, outcome: str, monkeypatch: Any
) -> None:
    """The served model is ours, or with a negative `apart` the other one, with rounding errors."""
    draw = np.random.default_rng(0)
    ours, errors = draw.normal(size=400), noise * draw.normal(size=400)
    other = ours + abs(apart) * draw.normal(size=400)
    monkeypatch.setattr(sampling, "_prompt_logps", lambda *_: [(other if apart < 0 else ours) + errors])
    model = ServedModel(Endpoint("s", "u", 1.0, "f", "K", None), "m", Path("ours"), "", 9, "")
    logps = {Path("ours"): ours, Path("other"): other}
    if outcome == "refused":
        with pytest.raises(SourceError, match="is nearer to other than to ours"):
            sampling.check(model, logps, [], 0.2)
    else:
        found = sampling.check(model, logps, [], 0.2)
        assert found["not_told_from"] == (["other"] if outcome == "hidden" else [])
        assert found["difference"] == pytest.approx(noise, rel=0.1)


def test_a_model_that_is_not_served_is_refused(server: CompletionServer) -> None:
    with pytest.raises(SourceError, match=r"model 'mine' at .*: not served; the server has reference, policy"):
        answer(server, policy="mine")


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ((200, b"<html>"), "does not answer in the form of /models; check url"),
        ((200, b'{"data": 3}'), "does not answer in the form of /models; check url"),
        ((200, b'{"data": [{"id": []}]}'), "does not answer in the form of /models; check url"),
        ((200, b'{"data": [{"id": {}}, 5]}'), "does not answer in the form of /models; check url"),
        ((200, b'{"data": []}'), "not served; the server has no models"),
        ((401, b""), f"status 401; set {KEY} to a valid key"),
        ((404, b""), r"status 404; check url \(it ends before /models\)"),
    ],
)
def test_an_odd_list_of_models_is_one_line(listing: tuple[int, bytes], message: str, server: CompletionServer) -> None:
    server.listing = listing
    with pytest.raises(SourceError, match=message):
        answer(server)
    assert (server.asked, written()) == ([], [])


def test_a_server_without_log_probabilities_is_refused_or_trusted(
    server: CompletionServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.checks = lambda handler, body: send_json(
        handler, {"choices": [{"text": "", "finish_reason": "length", "logprobs": None}]}
    )
    with pytest.raises(
        SourceError, match=r"without log-probabilities of the prompt .*, or set answer_text.sampler.tolera"
    ):
        answer(server)
    assert written() == []
    answer(server, tolerance=None)
    assert "nothing shows that" in caplog.text
    sampler = read_json(answer_text.STATISTICS)["sampler"]
    assert "difference" not in sampler["policy"]
    assert "checked_tokens" not in sampler


@pytest.mark.parametrize("values", [[float("nan")] * 200, ["a"] * 200, [None] * 200, [10**400] * 200, {"a": 1}, "text"])
def test_odd_log_probabilities_are_one_line(values: Any, server: CompletionServer) -> None:
    server.checks = lambda handler, body: send_json(handler, {"choices": [{"logprobs": {"token_logprobs": values}}]})
    with pytest.raises(SourceError, match=r"^params.yaml: answer_text.sampler") as caught:
        answer(server)
    assert "\n" not in str(caught.value)
    assert (server.asked, written()) == ([], [])


# Replies


def choice(**changes: Any) -> dict[str, Any]:
    """A reply to any prompt."""
    default = {"text": "abc", "token_ids": [97, 98, 99, 100, 101, 102], "finish_reason": "length", "stop_reason": None}
    return {"choices": [default | changes]}


FORM = "does not answer in the form of /completions; check url"
REPLIES: dict[str, tuple[Any, str]] = {
    "html": (b"<html>", FORM),
    "deep": (b"[" * 100_000, FORM),
    "digits": (b'{"choices":' + b"9" * 5000 + b"}", FORM),
    "a list": ([], FORM),
    "no choices": ({"choices": []}, FORM),
    "two choices": ({"choices": choice()["choices"] * 2}, FORM),
    "no text": (choice(text=None), FORM),
    "ids of text": (choice(token_ids="abc"), FORM),
    "a large id": (choice(token_ids=[1, 2, 3, 4, 5, 263]), "token ids outside the vocabulary of 263"),
    "a negative id": (choice(token_ids=[1, 2, 3, 4, 5, -1]), "token ids outside the vocabulary of 263"),
    "a huge id": (choice(token_ids=[1, 2, 3, 4, 5, 10**300]), "token ids outside the vocabulary of 263"),
    "a fraction": (choice(token_ids=[1, 2, 3, 4, 5, 1.5]), "token ids outside the vocabulary of 263"),
    "true": (choice(token_ids=[1, 2, 3, 4, 5, True]), "token ids outside the vocabulary of 263"),
    "too many": (choice(token_ids=[1] * 7), "has 7 tokens, more than max_new_tokens"),
    "cut early": (
        choice(token_ids=[1] * 5),
        r"was cut after 5 tokens; raise the server's context \(vLLM: --max-model-len",
    ),
    "cut at once": (choice(token_ids=[]), "was cut after 0 tokens"),
    "nothing": (choice(token_ids=None, text=""), "neither text nor token ids"),
    "aborted": (choice(finish_reason="abort"), "neither ended nor reached max_new_tokens"),
    "no reason": (choice(finish_reason=None), "neither ended nor reached max_new_tokens"),
    "the key": (choice(text=f"is {CANARY}"), f"repeats the key in {KEY}; take a longer one"),
    "the key in ids": (choice(token_ids=None, text=CANARY), f"repeats the key in {KEY}; take a longer one"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_that_is_no_answer_is_one_line(
    name: str, server: CompletionServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY, CANARY)
    caplog.set_level(logging.DEBUG)
    data, message = REPLIES[name]
    server.send = lambda handler, _: write(handler, data) if isinstance(data, bytes) else send_json(handler, data)
    with pytest.raises(SourceError, match=message) as caught:
        answer(server, tolerance=None)  # the check has tests of its own
    assert str(caught.value).startswith("params.yaml: answer_text.sampler")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert CANARY not in repr(caught.value) + caplog.text
    assert written() == []


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (302, "status 302; check url and model"),
        (400, "status 400; check url and model"),
        (401, f"status 401; set {KEY} to a valid key"),
        (403, f"status 403; set {KEY} to a key that may use this model"),
        (404, r"status 404; check url \(it ends before /completions\) and model"),
        (429, "status 429; the server is busy or its quota is used up"),
        (500, "status 500; check url and model, or run it again later"),
    ],
)
def test_a_server_that_refuses_is_one_line(status: int, message: str, server: CompletionServer) -> None:
    server.send = lambda handler, _: write(handler, b"no", status)
    with pytest.raises(SourceError, match=rf"answer_text.sampler.url: {server.url}/completions answers with {message}"):
        answer(server, tolerance=None)
    assert written() == []


def drip(handler: Handler, _: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.1)


def large(handler: Handler, _: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(400):
        handler.wfile.write(b" " * 2**20)


@pytest.mark.parametrize(("send", "message"), [(drip, r"cannot be reached \(timed out\)"), (large, "more than 4 MiB")])
def test_a_reply_that_never_ends_is_one_line(send: Send, message: str, server: CompletionServer) -> None:
    server.send = send
    start = time.monotonic()
    with pytest.raises(SourceError, match=message):
        answer(server, tolerance=None, timeout=0.4)
    assert time.monotonic() - start < 5


def test_a_server_without_token_ids_has_its_text_encoded(server: CompletionServer) -> None:
    """Which gives other ids where a model did not write a text as the tokenizer does, so it is said."""
    stop = ChatTokenizer(answer_text.REFERENCE, "chat").decode([262])
    texts = iter([("dog", "length"), (f"a{stop}", "stop"), ("", "stop"), (f"b{stop}c", "length"), (stop, "length")])

    def send(handler: Handler, _: Any) -> None:
        text, reason = next(texts, ("abcdefgh", "length"))
        send_json(handler, choice(token_ids=None, text=text, finish_reason=reason))

    server.send = send
    table = answer(server, parallel=1)
    tokenizer = ChatTokenizer(answer_text.REFERENCE, "chat")
    dog, end = tokenizer.response("dog").ids, tokenizer.end_id
    a, b = (tokenizer.response(text).ids for text in "ab")
    assert table["ids"].map(list).tolist()[:5] == [dog[:-1], a, [end], b, [end]]
    assert table["text"].tolist()[:6] == ["dog", "a", "", "b", "", "abcdef"]  # at most max_new_tokens
    assert table["ended"].tolist()[:6] == [False, True, True, True, True, False]
    assert table["reencoded"].all()
    assert read_json(answer_text.STATISTICS)["sampler"]["reencoded"] == len(table)


def test_an_answer_ends_at_its_first_stop_id(server: CompletionServer) -> None:
    """Also if the server goes on after it, or leaves it out."""
    end, other = ChatTokenizer(answer_text.REFERENCE, "chat").stop_ids[0], 97
    replies = iter(
        [
            choice(token_ids=[other, end, other, other, other, end]),
            choice(token_ids=[other, other], finish_reason="stop", stop_reason=end),
            choice(token_ids=[other, other], finish_reason="stop"),
            choice(token_ids=[], finish_reason="stop"),
        ]
    )
    server.send = lambda handler, _: send_json(handler, next(replies, choice()))
    ids = answer(server, parallel=1)["ids"].map(list).tolist()
    assert ids[:4] == [[other, end], [other, other, end], [other, other, end], [end]]


# Cut off, and changed


def test_a_run_that_failed_goes_on_with_the_replies_it_has(server: CompletionServer) -> None:
    whole = server.send

    def fails(handler: Handler, body: dict[str, Any]) -> None:
        whole(handler, body) if len(server.asked) <= 6 else write(handler, b"", 400)

    server.send = fails
    with pytest.raises(SourceError, match="answers with status 400"):
        answer(server, parallel=1)
    assert not answer_text.ANSWERS.exists()
    assert len(server.asked) == 7
    server.send = whole
    answer(server)
    assert len(server.asked) == 7 + 16 - 6


@pytest.mark.slow
@pytest.mark.chaos
def test_a_killed_run_asks_for_no_answer_twice(server: CompletionServer) -> None:
    """Only those in progress at the kill are asked for again."""
    code = f"""
        from pathlib import Path
        from prefdag.config.answer_text import AnswerText, EndpointSampler
        from format_settings import format_settings
        from stages import answer_text, ref_answers
        answer_text.main(format_settings(template="chat"), {settings(server, parallel=2)!r})
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=environment)
    whole = server.send

    def kill(handler: Handler, body: dict[str, Any]) -> None:
        process.kill() if len(server.asked) > 9 else whole(handler, body)

    server.send = kill
    assert process.wait() == -signal.SIGKILL
    assert not answer_text.ANSWERS.exists()
    time.sleep(0.2)
    asked = len(server.asked)
    server.send = whole
    answer(server)
    assert len({json.dumps(body) for body in server.asked}) == 16
    assert 9 < asked < 16
    assert len(server.asked) <= 16 + 2


def test_a_policy_that_was_trained_again_is_asked_again(server: CompletionServer) -> None:
    """Under the same name at the same server. The reference's answers stay."""
    answer(server)
    shutil.rmtree(answer_text.POLICY)
    policy = with_adapter(answer_text.REFERENCE, ADAPTERS["lora"])
    disturb(policy, seed=5)
    answer_text.POLICY.mkdir()
    trainable.save_policy(policy, answer_text.POLICY, answer_text.REFERENCE)
    asked = len(server.asked)
    with pytest.raises(SourceError, match=r"model 'policy' .* is not models/policy"):  # the server has the old one
        answer(server)
    server.models = load_models(answer_text.REFERENCE, answer_text.POLICY, packed=False)._asdict()
    served = answer(server)
    assert [body["model"] for body in server.asked[asked:]] == ["policy"] * 8
    assert greedy(served) == greedy(answer())


def test_the_key_goes_into_the_header_and_nowhere_else(
    server: CompletionServer, monkeypatch: pytest.MonkeyPatch, capfd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY, f"{CANARY}\n")
    caplog.set_level(logging.DEBUG)
    answer(server)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {CANARY}"}
    captured = capfd.readouterr()
    assert CANARY not in captured.out + captured.err + caplog.text
    assert len(written()) == 16 + 2
    assert not [path for path in written() if CANARY.encode() in path.read_bytes()]


# Parameters


def test_an_address_with_secrets_is_refused(root: Path, tmp_path: Path) -> None:
    text = (root / "params.yaml").read_text("utf-8")
    for url in ("https://me:secret@host/v1", "https://host/v1?key=x", "host/v1"):
        new = f"sampler: {{kind: endpoint, url: '{url}', reference: a, policy: b, timeout: 1, tolerance: 0.1}}"
        before, section, after = text.partition("\nanswer_text:")
        (tmp_path / "params.yaml").write_text(before + section + after.replace("sampler: {kind: local}", new, 1))
        with pytest.raises(ParamsError, match=r"answer_text.sampler.url: string should match"):
            load_params(tmp_path / "params.yaml")


def test_the_examples_in_params_yaml_are_valid(root: Path, tmp_path: Path) -> None:
    text = (root / "params.yaml").read_text("utf-8").replace("  sampler: {kind: local}", "  # local")
    (tmp_path / "params.yaml").write_text(text.replace("  # sampler:", "  sampler:"))
    params = load_params(tmp_path / "params.yaml")
    for sampler, kind in ((params.answer_text.sampler, EndpointSampler), (params.rounds.sampler, ServedPolicy)):
        assert isinstance(sampler, kind)
        assert replace(sampler, parallel=1).tolerance == 0.1


def test_seeds_differ_by_prompt_and_fit_into_31_bits() -> None:
    seeds = [seed_of([0, number]) for number in range(1000)]
    assert len(set(seeds)) == 1000
    assert 0 <= min(seeds) < max(seeds) < 2**31
    assert np.mean(seeds) == pytest.approx(2**30, rel=0.1)
