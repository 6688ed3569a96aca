"""The stages of rounds, on a tiny model: sampling, judging, training and evaluation, in the places where dvc.yaml has them."""

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from completion_server import CompletionServer
from format_settings import format_settings
from judge_server import Server as JudgeServer
from judge_server import completion
from paths import ROOT
from safetensors.torch import load_file, save_file
from tasks import NO_OPTIONS, without_tracking
from text_project import dpo_settings
from tiny_models import ADAPTERS, disturb, random_groups, with_adapter, write_model, write_word_tokenizer

from prefdag.check_params import check_params
from prefdag.config.health import Health, RoundsFinding
from prefdag.config.loss_options import LossOptions
from prefdag.config.ref_logps import RefLogps
from prefdag.dpo.preference import squared_logratio
from prefdag.health.verdict import Verdict, read
from prefdag.lifecycle.errors import DataError, NumericError, SourceError
from prefdag.pairs.schema import read_pairs, write_pairs
from prefdag.rounds import training as round_training
from prefdag.rounds.plan import TrainPlan
from prefdag.runtime.artifacts import read_json, sha256, write_json
from prefdag.runtime.dvc_files import read_dag
from prefdag.runtime.yaml import read_yaml
from prefdag.text import endpoint as http
from prefdag.text import model as lm
from prefdag.text import trainable
from prefdag.text.evaluation.metrics import compare_heldout
from prefdag.text.scoring.logps import Pair, all_pair_logps
from prefdag.tokenizer.tokenizer import ChatTokenizer
from prefdag.train.checkpoint import Checkpoints
from stages import (
    dpo_round,
    dpo_text,
    evaluate_round,
    format_pairs,
    health_text,
    judge_round,
    plan_rounds,
    ref_logps,
    sample_round,
    select_policy,
)

pytestmark = pytest.mark.slow

OPTIONS = LossOptions(**NO_OPTIONS)
WORDS = ["good", "bad", "Is", "it"]
FORMAT = format_settings(max_prompt_tokens=16, max_response_tokens=8, max_left_out=0.0, val_fraction=0.3)
SETTINGS = {"count": 2, "prompts": 5, "samples": 3, "max_new_tokens": 6, "batch_size": 8, "kl_budget": 1e6}
BETA, SEED = 0.5, 0
DPO = dpo_settings(epochs=3, batch_size=8, checkpoint_every=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which dpo_text has run: 24 prompts."""
    folder = tmp_path_factory.mktemp("finished")
    raw = folder / "raw"
    raw.mkdir()
    lines = [{"prompt": f"Is it {i} ?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(24)]
    (raw / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_tracking(patch, folder / "checkpoints")
        format_pairs.PAIRS.parent.mkdir(parents=True)
        write_pairs(format_pairs.PAIRS, read_pairs(raw, "plain"))
        write_word_tokenizer(write_model(Path("models/base"), "llama", eos_token_id=0), WORDS)
        format_pairs.main(FORMAT)
        shutil.copytree("models/base", dpo_text.REFERENCE)
        ref_logps.main(RefLogps(dtype="float32", tokens_per_batch=100, shard="none"))
        dpo_text.main(BETA, "sigmoid", SEED, OPTIONS, {}, DPO)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working directory."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    without_tracking(monkeypatch, tmp_path / "checkpoints")
    return tmp_path


def plan(**changes: Any) -> None:
    tree = read_yaml(ROOT / "params.yaml")
    tree["rounds"] |= SETTINGS | {"judge": {"kind": "implicit"}} | changes
    rounds = check_params(tree, Path("params.yaml")).rounds
    plan_rounds.main(BETA, "sigmoid", SEED, OPTIONS, {}, FORMAT, DPO, rounds)


def run_round(number: Any, settings: Any = DPO) -> None:
    """Run a round's stages, and in place of one that is off what the shell does in dvc.yaml."""
    commands = {name: entry["cmd"] for name, entry in read_dag(ROOT / "dvc.yaml").items()}
    of_loss = (BETA, "sigmoid", OPTIONS, FORMAT)
    calls: Mapping[str, Any] = {
        "sample_round": lambda: sample_round.main(number, FORMAT),
        "judge_round": lambda: judge_round.main(number, *of_loss),
        "dpo_round": lambda: dpo_round.main(number, BETA, "sigmoid", SEED, OPTIONS, {}, settings),
        "evaluate_round": lambda: evaluate_round.main(number, *of_loss),
    }
    for name, call in calls.items():
        command = commands[f"{name}@{number}"]
        done = subprocess.run(command.replace("python", "exit 42 #").replace("; fi", "\nfi"), shell=True, check=False)
        if done.returncode == 42:
            call()
        else:
            assert done.returncode == 0


def chosen() -> Any:
    for number in (1, 2, 3):
        if not Path(f"reports/rounds/{number}.json").exists():
            write_json(Path(f"reports/rounds/{number}.json"), None)
    select_policy.main()
    return read_json(select_policy.CHOSEN)


def health() -> Verdict:
    health_text.main(DPO, Health(kl_budget=1e6, fail_on=[]))
    return read(health_text.HEALTH)


def pairs(number: int) -> pd.DataFrame:
    return pd.read_parquet(f"data/rounds/{number}/pairs/train.parquet")


@pytest.mark.usefixtures("project", "one_thread")
def test_two_rounds() -> None:
    """Each round samples from the policy before it, on prompts of its own, and trains on all pairs so far."""
    plan()
    for number in (1, 2, 3):
        run_round(number)
    samples = {n: pd.read_parquet(f"data/rounds/{n}/samples/answers.parquet") for n in (1, 2)}
    assert [len(each) for each in samples.values()] == [15, 15]
    assert not set(samples[1]["id"]) & set(samples[2]["id"])
    train = set(pd.read_parquet("data/pairs/train.parquet")["id"])
    assert set(samples[1]["id"]) | set(samples[2]["id"]) <= train

    first, second = pairs(1), pairs(2)
    pd.testing.assert_frame_equal(second[second["round"] == 1].reset_index(drop=True), first)
    for number, policy in ((1, "models/dpo_text"), (2, "models/rounds/1")):
        own = second[second["round"] == number]
        assert len(own)
        assert set(own["policy"]) == {sha256(Path(policy))}
        models = lm.load_models(Path("models/reference"), Path(policy))
        for row in own.to_dict("records"):  # a row can be traced to its samples, and its scores to the judge
            of_prompt = samples[number][samples[number]["id"] == row["prompt_id"]].set_index("sample")
            for side in ("chosen", "rejected"):
                answer = of_prompt.loc[row[f"{side}_sample"]]
                assert answer["text"] == row[side]
                assert answer["tokens"] == row[f"{side}_tokens"]
            assert row["chosen_score"] > row["rejected_score"]
            answered = [
                Pair(list(row["prompt_ids"]), list(of_prompt.loc[row[f"{side}_sample"]]["ids"]), None)
                for side in ("chosen", "rejected")
            ]
            batch = compare_heldout(models, answered, 1000).batch
            rewards = BETA * (batch.chosen.logps - batch.chosen.ref_logps)
            np.testing.assert_allclose(rewards, [row["chosen_score"], row["rejected_score"]], atol=1e-4)

    result = read_json(Path("reports/rounds/2.json"))
    assert (result["go"], result["round"], result["judge"]["n"]) == (True, 2, 5)
    assert result["kl_to_reference"] > read_json(Path("reports/rounds/1.json"))["kl_to_reference"] > 0
    assert Path("models/rounds/3/off").exists()
    assert read_json(Path("reports/rounds/3.json")) is None
    assert chosen() == {"round": 2, "at_reference": False, "reasons": [], "model": "models/rounds/2"}
    check_table(read_json(Path("reports/rounds/1.json")), result)
    verdict = health()
    assert verdict.checked[-2:] == ["length_drift", "falling_diversity"]
    assert "judge_exploitation" in verdict.not_checked  # there is no stopping judge
    assert sha256(Path("models/policy")) == sha256(Path("models/rounds/2")) != sha256(Path("models/rounds/1"))


def check_table(*results: Mapping[str, Any]) -> None:
    """The row before the rounds, and one for each, with the numbers of its result."""
    table = pd.read_csv(select_policy.TABLE)
    assert table["round"].tolist() == [0, 1, 2]
    assert table["kl_to_reference"].tolist() == [
        pytest.approx(value)
        for value in (results[0]["before"]["kl_to_reference"], *(r["kl_to_reference"] for r in results))
    ]
    for result in results:
        assert 0 < result["before"]["kl_to_reference"] < result["kl_to_reference"]
    assert (table["kl_to_reference_low"] <= table["kl_to_reference"]).all()
    assert (table["kl_to_reference"] < table["kl_to_reference_high"]).all()
    assert table["tokens"].tolist() == [results[0]["before"]["tokens"], *(r["after"]["tokens"] for r in results)]
    for row, result in zip(table.to_dict("records")[1:], results, strict=True):
        assert row["win_rate"] == result["judge"]["win_rate"]
        assert row["pairs"] == result["pairs"]["pairs"] == (pairs(2)["round"] == row["round"]).sum()


@pytest.mark.usefixtures("project", "one_thread")
def test_round_2_goes_on_after_a_kill_to_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were killed after its second checkpoint."""
    plan(min_margin=0.0)
    for number in (1, 2):
        run_round(number)
    expected = sha256(Path("models/rounds/2"))
    shutil.rmtree("models/rounds/2")
    saved = Checkpoints.save

    def save(checkpoints: Checkpoints, step: int, *state: Any) -> None:
        saved(checkpoints, step, *state)
        if step == 2:
            raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(SystemExit):
            dpo_round.main(2, BETA, "sigmoid", SEED, OPTIONS, {}, DPO)
    assert not Path("models/rounds/2").exists()
    steps = without_tracking(monkeypatch, Path("checkpoints").absolute())
    dpo_round.main(2, BETA, "sigmoid", SEED, OPTIONS, {}, DPO)
    assert len(steps[0][0].train) > 2
    assert sha256(Path("models/rounds/2")) == expected


@pytest.mark.usefixtures("project")
def test_without_rounds_the_policy_is_that_of_dpo_text() -> None:
    plan(count=0)
    for number in (1, 2, 3):
        run_round(number)
        for folder in (f"data/rounds/{number}/samples", f"data/rounds/{number}/pairs", f"models/rounds/{number}"):
            assert [path.name for path in Path(folder).iterdir()] == ["off"]
    assert chosen() == {"round": 0, "at_reference": True, "reasons": [], "model": "models/dpo_text"}
    assert len(select_policy.TABLE.read_text().splitlines()) == 1
    verdict = health()
    assert not set(get_args(RoundsFinding)) & {*verdict.checked, *verdict.not_checked}
    assert sha256(Path("models/policy")) == sha256(Path("models/dpo_text"))


@pytest.mark.usefixtures("project")
def test_a_failing_round_is_not_chosen_and_switches_the_next_one_off() -> None:
    plan(kl_budget=1e-9)
    for number in (1, 2):
        run_round(number)
    result = read_json(Path("reports/rounds/1.json"))
    assert not result["go"]
    assert "nats per response is above rounds.kl_budget" in result["reasons"][0]
    assert Path("models/rounds/1/adapter_model.safetensors").exists()
    assert [path.name for path in Path("models/rounds/2").iterdir()] == ["off"]
    assert chosen()["model"] == "models/dpo_text"


@pytest.mark.usefixtures("project")
def test_too_few_prompts_are_refused() -> None:
    plan(prompts=9)
    shutil.copytree("models/dpo_text", "models/rounds/1")
    write_json(Path("reports/rounds/1.json"), {"go": True})
    with pytest.raises(DataError, match=r"prompts, but the rounds up to round 2 take 18; lower rounds.prompts"):
        sample_round.main(2, FORMAT)


@pytest.mark.usefixtures("project")
def test_answers_of_another_policy_are_refused() -> None:
    """In judge_round, and again before training."""
    plan(count=1)
    run_round(1)
    history = Path("models/dpo_text/history.csv")
    history.write_text(history.read_text() + "\n")
    with pytest.raises(DataError, match=r"made.json: answers of the policy \w{16}, but models/dpo_text is \w{16}; run"):
        judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    with pytest.raises(DataError, match=r"pairs/train.parquet: answers of the policy"):
        dpo_round.main(1, BETA, "sigmoid", SEED, OPTIONS, {}, DPO)


@pytest.mark.usefixtures("project")
def test_prompts_from_a_file() -> None:
    """Two rounds share none; a prompt of the pairs is dropped; checks compare with the row's own response."""
    lines = [{"prompt": f"good {i} ?", "chosen": f"It is {i}"} for i in range(10)]
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, [{"prompt": "Is it 3 ?"}, *lines])))
    source = {"kind": "path", "path": "mine.jsonl", "sha256": sha256(Path("mine.jsonl"))}
    plan(prompts={"source": source, "count": 5}, judge={"kind": "verify", "checks": [{"kind": "number"}]})
    shutil.copytree("models/dpo_text", "models/rounds/1")
    write_json(Path("reports/rounds/1.json"), {"go": True})
    for number in (1, 2):
        sample_round.main(number, FORMAT)  # type: ignore[arg-type]
    asked = [pd.read_parquet(f"data/rounds/{number}/samples/prompts.parquet") for number in (1, 2)]
    assert sorted(pd.concat(asked)["source"]) == sorted(f"mine.jsonl:{row}" for row in range(2, 12))
    assert len(samples()) == 15
    judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    scores = pd.read_parquet("data/rounds/1/pairs/scores.parquet").merge(asked[0], on="id")
    assert len(scores) == 15
    for row in scores.to_dict("records"):
        assert row["score"] == (re.findall(r"\d+", row["text"])[-1:] == row["chosen"].split()[-1:])
    plan(prompts={"source": source, "count": 6})
    with pytest.raises(DataError, match=r"prompts.source: 10 prompts, but the rounds up to round 2 take 12; lower"):
        sample_round.main(2, FORMAT)


# A server as the sampler


@pytest.fixture
def server(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CompletionServer]:
    """It serves the policy of dpo_text, as "policy"."""
    monkeypatch.setattr(http, "BACKOFF", 0.01)
    monkeypatch.setattr(http, "RETRIES", 1)
    models = lm.load_models(dpo_text.REFERENCE, Path("models/dpo_text"), packed=False)
    with CompletionServer(
        {"policy": models.policy}, ChatTokenizer(dpo_text.REFERENCE, FORMAT.template).decode
    ).running() as own:
        yield own


def plan_server(server: CompletionServer, **changes: Any) -> None:
    sampler = {
        "kind": "endpoint",
        "url": server.url,
        "model": "policy",
        "timeout": 20.0,
        "tolerance": 1e-4,
        "parallel": 1,
    }
    plan(count=2, sampler=sampler | changes)


def samples() -> pd.DataFrame:
    return pd.read_parquet("data/rounds/1/samples/answers.parquet")


@pytest.mark.usefixtures("one_thread")
def test_a_server_samples_and_each_reply_is_kept(server: CompletionServer) -> None:
    plan_server(server)
    sample_round.main(1, FORMAT)
    table = samples()
    assert len(table) == 15
    assert sorted(table["seed"]) == sorted(body["seed"] for body in server.asked)
    assert table["seed"].nunique() == 15
    assert [json.loads(reply)["token_ids"] for reply in table["reply"]] == [list(ids) for ids in table["ids"]]
    made = read_json(Path("data/rounds/1/samples/made.json"))
    assert made["policy"] == made["sampler"]["policy"]["sha256"] == sha256(Path("models/dpo_text"))
    assert made["sampler"]["policy"]["difference"] < 1e-4
    judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    assert json.loads(pairs(1)["sampler"][0]) == made["sampler"]
    # The other policy of the two, left on the server for the next round
    shutil.copytree("models/dpo_text", "models/rounds/1")
    weights = Path("models/rounds/1/adapter_model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in load_file(weights).items()}, weights)
    write_json(Path("reports/rounds/1.json"), {"go": True})
    plan_server(server, tolerance=10.0)
    with pytest.raises(SourceError, match=SERVE_ROUND_1):
        sample_round.main(2, FORMAT)
    assert not Path("data/rounds/2").exists()


SERVE_ROUND_1 = (
    r"^params.yaml: rounds.sampler: model 'policy' at \S+: is nearer to models/dpo_text than to models/rounds/1; serve "
    r"models/rounds/1 \(vllm serve models/reference --enable-lora --lora-modules policy=models/rounds/1\), then run this again$"
)


def test_a_killed_round_asks_only_for_what_it_has_not_got(server: CompletionServer) -> None:
    plan_server(server)
    answer = server.send

    def send(handler: Any, body: dict[str, Any]) -> None:
        if len(server.asked) > 6:
            raise OSError  # hangs up
        answer(handler, body)

    server.send = send
    with pytest.raises(SourceError, match="Replies received so far are kept"):
        sample_round.main(1, FORMAT)
    assert not Path("data/rounds/1/samples").exists()
    before = [body["seed"] for body in server.asked[:6]]
    server.send = answer
    server.asked.clear()
    sample_round.main(1, FORMAT)
    assert len(server.asked) == 9
    assert not {body["seed"] for body in server.asked} & set(before)
    # another policy is asked again
    history = Path("models/dpo_text/history.csv")
    history.write_text(history.read_text() + "\n")
    sample_round.main(1, FORMAT)
    assert len(server.asked) == 9 + 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "reference",
            r"is not models/dpo_text: .* serve models/dpo_text \(vllm serve .*=models/dpo_text\), then run this",
        ),
        ("name", r"not served; the server has other; serve models/dpo_text \(vllm serve"),
    ],
)
def test_another_model_on_the_server_is_refused(change: str, message: str, server: CompletionServer) -> None:
    if change == "name":
        server.models = {"other": server.models["policy"]}
    else:
        server.models = {"policy": lm.load(dpo_text.REFERENCE, packed=False)}
    plan_server(server)
    with pytest.raises(SourceError, match=message):
        sample_round.main(1, FORMAT)
    assert not server.asked


# Judges


GOOD = {"kind": "regex", "pattern": "good", "name": "good"}
BRIEF = {"kind": "length", "unit": "words", "max": 4, "name": "brief"}


@pytest.mark.usefixtures("project", "one_thread")
def test_programs_judge_and_stop() -> None:
    """A pair says which check decided: the first one on which its answers differ."""
    both = {"kind": "verify", "checks": [GOOD, BRIEF], "combine": "in_order"}
    plan(count=1, judge=both, stopping_judge={"kind": "verify", "checks": [BRIEF]}, pairs="all")
    run_round(1)
    table = pairs(1)
    for row in table.to_dict("records"):
        passed = [("good" in row[side], len(row[side].split()) <= 4) for side in ("chosen", "rejected")]
        assert passed[0] > passed[1]
        assert row["decided_by"] == ("good" if passed[0][0] != passed[1][0] else "brief")
    assert set(table["decided_by"]) == {"good", "brief"}
    result = read_json(Path("reports/rounds/1.json"))
    assert result["judge"]["n"] == result["stopping_judge"]["n"] == 5


@pytest.mark.usefixtures("project", "one_thread")
def test_a_server_judges_by_principles() -> None:
    """A pair says which one decided, and no verdict is asked for twice."""

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        told, asked = (message["content"] for message in body["messages"])
        texts = [part.split("]\n")[1].split("\n[End")[0] for part in asked.split("[Start of Assistant")[1:]]
        one, other = (-len(text.split()) if "brief" in told else "good" in text for text in texts)
        return completion(f"[[{'A' if one > other else 'B' if one < other else 'C'}]]")

    file = Path("principles.yaml")
    file.write_text("good: Be good.\nbrief: Be brief.\n")
    principles = {"kind": "path", "path": str(file), "sha256": sha256(file)}
    with JudgeServer().running() as server:
        server.reply = answer
        judge = {"kind": "endpoint", "url": server.url, "model": "m", "max_tokens": 9, "timeout": 9.0}
        plan(count=1, judge=judge | {"principles": principles}, pairs="all")
        sample_round.main(1, FORMAT)
        judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
        asked = len(server.asked)
        judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
        assert len(server.asked) == asked
    table = pairs(1)
    for row in table.to_dict("records"):
        good, brief = zip(
            *(("good" in row[side], -len(row[side].split())) for side in ("chosen", "rejected")), strict=True
        )
        assert row["decided_by"] == ("good" if good[0] > good[1] else "brief" if brief[0] > brief[1] else None)
    assert {"good", "brief"} <= set(table["decided_by"])
    assert json.loads(table["judge"][0])["principles"] == principles


@pytest.mark.usefixtures("project", "one_thread")
def test_prompts_of_which_the_policy_is_unsure_are_judged() -> None:
    """Its implicit rewards of their answers are closer than those of any other prompt."""
    plan(count=1, samples=2, select={"by": "uncertainty", "budget": 2}, judge={"kind": "verify", "checks": [BRIEF]})
    sample_round.main(1, FORMAT)
    judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    judged = pd.read_parquet("data/rounds/1/pairs/scores.parquet")["id"].unique()
    assert len(judged) == 2
    models = lm.load_models(Path("models/reference"), Path("models/dpo_text"))
    margins = {}
    for key, group in samples().groupby("id"):
        rows = [Pair(list(row["prompt_ids"]), list(row["ids"]), None) for row in group.to_dict("records")]
        batch = compare_heldout(models, rows, 1000).batch
        first, second = (batch.chosen.logps - batch.chosen.ref_logps).tolist()
        if group["text"].nunique() > 1:
            margins[key] = abs(first - second)
    assert set(judged) == set(sorted(margins, key=margins.__getitem__)[:2])


@pytest.mark.usefixtures("project")
def test_several_judges_are_merged() -> None:
    """Three programs have a vote each on two answers; the pair keeps what each of them said, and trains on the share."""
    longer = {"kind": "length", "unit": "characters", "min": 12}
    judges = [{"kind": "verify", "checks": [each]} for each in (GOOD, BRIEF, longer)]
    plan(count=1, samples=2, prompts=12, judge=[*judges, {"kind": "implicit"}])
    sample_round.main(1, FORMAT)
    judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    table = pairs(1)
    for row in table.to_dict("records"):
        each = zip(row["chosen_scores"], row["rejected_scores"], strict=True)
        assert row["preference"] == np.mean([(np.sign(a - b) + 1) / 2 for a, b in each]) > 0.5
        for side in ("chosen", "rejected"):
            own = ["good" in row[side], len(row[side].split()) <= 4, len(row[side]) >= 12]
            assert list(row[f"{side}_scores"])[:3] == own
        assert len(json.loads(row["judge"])) == len(row["chosen_scores"]) == 4
    assert (table["preference"] < 1).any()
    dpo_round.main(1, BETA, "sigmoid", SEED, OPTIONS, {}, DPO)
    evaluate_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    assert read_json(Path("reports/rounds/1.json"))["judge"]["n"] == 7


def say(folder: Path, name: str, outcome: Any) -> None:
    """Labels of a person on all that is to be labelled, as in a filled table. `outcome` is given both answers."""
    table = pd.read_csv("labels/to_label/round-1/to_label.csv", keep_default_na=False)
    table["outcome"] = [outcome(first, second) for first, second in zip(table["first"], table["second"], strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False)


@pytest.mark.usefixtures("project", "one_thread")
def test_people_label_and_the_round_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops with one line; labels come; the pairs are those that the labels say, with the share of the people."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    labels = Path("labels/round-1")
    plan(count=1, samples=2, prompts=5, judge={"kind": "people"}, select={"by": "random", "budget": 4})
    sample_round.main(1, FORMAT)
    stops = r"^labels/round-1: (\d) of \1 comparisons wait for the label of a person; `prefdag label 1` shows them"
    with pytest.raises(DataError, match=stops):
        judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    assert not Path("data/rounds/1/pairs").exists()
    say(labels, "ann", lambda first, second: "first" if first < second else "second")
    say(labels, "bob", lambda first, second: "tie")
    judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    table, summary = pairs(1), read_json(Path("data/rounds/1/pairs/summary.json"))
    asked = pd.read_csv("labels/to_label/round-1/to_label.csv")
    assert len(table) == len(asked) == summary["people"]["compared_twice"] > 1
    assert (table["chosen"] < table["rejected"]).all()
    assert set(table["preference"]) == {0.75}  # one vote and a half of two
    assert {(tuple(row["chosen_scores"]), tuple(row["rejected_scores"])) for row in table.to_dict("records")} == {
        ((1.0, 0.5), (0.0, 0.5))
    }
    assert json.loads(table["judge"][0]) == {"kind": "people", "labels": 1, "people": ["ann", "bob"]}
    used = pd.read_csv("data/rounds/1/pairs/labels.csv")
    assert used["annotator"].tolist() == ["ann", "bob"] * len(asked)
    assert set(used["prompt_id"]) == set(table["prompt_id"])
    before = sha256(Path("data/rounds/1/pairs"))
    judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    assert sha256(Path("data/rounds/1/pairs")) == before
    # A label more: eve is for the other answer.
    say(labels, "eve", lambda first, second: "second" if first < second else "first")
    judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    assert read_json(Path("data/rounds/1/pairs/summary.json"))["pairs"] == 0
    (labels / "eve.csv").unlink()
    judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    dpo_round.main(1, BETA, "sigmoid", SEED, OPTIONS, {}, DPO)
    evaluate_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    assert read_json(Path("reports/rounds/1.json"))["judge"] == {"n": 5}
    assert chosen()["round"] == 1
    rows = pd.read_csv(select_policy.TABLE)
    assert rows["win_rate"].isna().all()
    assert rows["n"].tolist()[1] == 5
    assert "judge_exploitation" in health().not_checked


@pytest.mark.usefixtures("project")
def test_people_and_a_program_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person and a program have a vote each; the scores of a pair are the program's, then the person's."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    plan(count=1, samples=2, judge=[{"kind": "people"}, {"kind": "verify", "checks": [GOOD]}])
    sample_round.main(1, FORMAT)
    with pytest.raises(DataError, match="comparisons wait for the label of a person"):
        judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    say(Path("labels/round-1"), "ann", lambda first, second: "first" if len(first) > len(second) else "second")
    judge_round.main(1, BETA, "sigmoid", OPTIONS, FORMAT)
    for row in pairs(1).to_dict("records"):
        good = [float("good" in row[side]) for side in ("chosen", "rejected")]
        assert [row[f"{side}_scores"][0] for side in ("chosen", "rejected")] == good
        votes = [(1 + np.sign(good[0] - good[1])) / 2, row["chosen_scores"][1]]
        assert row["preference"] == np.mean(votes) > 0.5


# Start and reference


@pytest.mark.usefixtures("project", "one_thread")
@pytest.mark.parametrize("reference", ["first", "previous"])
@pytest.mark.parametrize("start", ["previous", "first"])
def test_step_0_is_where_start_and_reference_say(start: str, reference: str) -> None:
    plan(count=1, start=start, reference=reference)
    run_round(1)
    history = pd.read_csv("models/rounds/1/history.csv")
    zero = history["logratios/square"][0] < 1e-6
    assert zero == (start == reference)
    result = read_json(Path("reports/rounds/1.json"))
    assert (result["start"], result["reference"]) == (start, reference)
    if start == reference:
        assert history["loss"][0] == pytest.approx(np.log(2), abs=1e-5)
    else:  # the policy before is rewarded against the first reference, or the other way round
        table = pairs(1)
        models = lm.load_models(Path("models/reference"), Path("models/dpo_text"))
        rows = [Pair(list(r["prompt_ids"]), *_scored(r)) for r in table.to_dict("records")]
        batch = compare_heldout(models, rows, 1000).batch
        assert DPO.training.batch_size >= len(rows)  # so that step 0 has all rows
        assert history["logratios/square"][0] == pytest.approx(float(squared_logratio(batch).mean()), rel=1e-3)


def _scored(row: Mapping[Any, Any]) -> list[list[int]]:
    return [list(row[f"{side}_ids"])[: -1 if row[f"{side}_truncated"] else None] for side in ("chosen", "rejected")]


@pytest.mark.usefixtures("project")
def test_a_policy_that_does_not_start_at_the_previous_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the adapter's weights were not taken over."""
    plan(count=1)
    monkeypatch.setattr(round_training, "take_adapter", lambda policy, folder: None)
    with pytest.raises(NumericError, match=r"step 0: .*, but the previous policy, from which the round starts, gives"):
        run_round(1)


@pytest.mark.parametrize("kind", list(ADAPTERS))
def test_every_adapter_goes_on_from_the_policy_before(kind: str, tmp_path: Path) -> None:
    """The loaded policy gives the log-probabilities of the saved one; an adapter of another shape is refused."""
    reference = write_model(tmp_path / "llama", "llama")
    adapter = ADAPTERS[kind]
    before = with_adapter(reference, adapter)
    disturb(before)
    (tmp_path / "before").mkdir()
    trainable.save_policy(before, tmp_path / "before", reference)
    config = dataclasses.replace(DPO, adapter=adapter)
    own = round_training.start_policy(
        reference, tmp_path / "before", config, _train_plan(start="previous", reference="first"), 1
    )
    rows = [Pair(group.prompt, *group.responses) for group in random_groups(4, 2, seed=3)]
    expected, found = (all_pair_logps(model, rows, 1000, "") for model in (before, own))
    np.testing.assert_allclose(found.chosen.logps, expected.chosen.logps, atol=1e-4)
    assert any(p.requires_grad for p in own.parameters())


def _train_plan(**settings: Any) -> Any:
    return TrainPlan(train_on="all", batch_size=1, tokens_per_batch=100, shard="none", **settings)
