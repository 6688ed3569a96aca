"""The rounds in report, model card and metrics."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_inputs import HOSTILE, Page, write_inputs, write_rounds

from prefdag.check_params import check_params
from prefdag.config.params import Params
from prefdag.report.text import rounds
from prefdag.runtime.artifacts import write_json
from prefdag.runtime.yaml import read_yaml
from stages import report

ENDPOINT = {"kind": "endpoint", "url": "https://host/v1", "model": "m", "max_tokens": 9, "timeout": 9.0}


def settings(root: Path, **sections: Any) -> Params:
    tree = read_yaml(root / "params.yaml")
    tree["judge_text"]["judge"] = {"kind": "implicit"}  # as the inputs have it
    tree["rounds"] |= {"count": 3, "judge": ENDPOINT, "stopping_judge": {"kind": "implicit"}}
    for name, changes in sections.items():
        tree[name] |= changes
    return check_params(tree, root / "params.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rounds")
    write_inputs(path)
    write_rounds(path)
    return path


@pytest.fixture(scope="module")
def html(folder: Path, root: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report.main(settings(root))
        return Path("reports/index.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.mark.slow
def test_the_table_has_every_measure_with_its_interval(page: Page) -> None:
    """The numbers of `write_rounds`."""
    assert page.open == []
    for line in (
        "Validation prompts before (dpo_text) round 1, chosen round 2",
        "Win rate against the policy before, by the judge – 70.0% 59.0–81.0% 70.0%",
        "– length-controlled – 61.0% 49.0–73.0%",
        "by the stopping judge – 45.0% 33.0–57.0%",
        "Contests on which both judges agree – 66.0% 56.0–76.0%",
        "KL to the first reference, nats per response 0.40 0.30 to 0.50 2.25 1.75 to 2.75 12.75 11.25 to 14.25",
        "Length in tokens 20.5 18.0 to 23.0 31.5 28.0 to 35.0",
        "Repetition (seq-rep-4) 12.5% 10.5–14.5%",
        "Distinct bigrams (distinct-2) 62.0% 57.0–67.0%",
        "– its change at equal lengths, points – −3.1 −5.1 to −1.1",
        "Pairs kept – 51 51 Prompts with a pair – 51 51 Prompts without a pair – 13 13",
        "The numbers below are of 64 validation prompts",
    ):
        assert line in page.text
    assert "by the stopping judge – – –" not in page.text  # a line without any number is left out


@pytest.mark.slow
def test_report_and_card_say_which_policy_and_why_no_further_round_ran(page: Page, folder: Path) -> None:
    sentence = (
        "2 of 3 rounds of DPO on the policy’s own answers ran; the policy of round 1 was chosen. Round 2 was the "
        "last: the KL of 12.8 nats per response is above rounds.kl_budget, 10."
    )
    assert sentence in page.text
    assert sentence in (folder / "reports/model_card.md").read_text("utf-8")
    assert "| `models/rounds/1` |" in (folder / "reports/model_card.md").read_text("utf-8")


def test_a_pair_is_traced_to_its_samples(page: Page, folder: Path) -> None:
    found = re.findall(r"Round (\d) , prompt (\S+), samples (\d) and (\d) of (\S+); policy (\w{16})", page.text)
    assert [number for number, *_ in found] == ["2", "2"]
    for number, prompt, chosen, rejected, path, policy in found:
        answers = pd.read_parquet(folder / path).set_index(["id", "sample"])["text"]
        pairs = pd.read_parquet(folder / f"data/rounds/{number}/pairs/train.parquet")
        (row,) = pairs[(pairs["round"] == int(number)) & (pairs["prompt_id"] == prompt)].to_dict("records")
        assert (answers[prompt, int(chosen)], answers[prompt, int(rejected)]) == (row["chosen"], row["rejected"])
        assert row["policy"].startswith(policy)
        assert f"chosen sample {chosen}, score +1.500, 9 tokens {row['chosen']}" in page.text
        assert f"rejected sample {rejected}, score −0.250, 8 tokens {row['rejected']}" in page.text
    assert "sampler local (temperature 1.0), seed 7; judge endpoint (model m)" in page.text


def test_hostile_answers_are_shown_and_not_run(page: Page, html: str) -> None:
    assert f"{HOSTILE} 2 0 1" in page.text
    assert "<script>alert(1)" not in html


def test_the_figures_have_every_number_in_words(page: Page) -> None:
    labels = [a["aria-label"] or "" for tag, a in page.tags if tag == "svg"]
    (rates,) = (label for label in labels if "round 1, judge: 70.0% (59.0% to 81.0%)" in label)
    assert "round 1, stopping judge: 45.0% (33.0% to 57.0%)" in rates
    assert any("round 0: 0.400 (0.300 to 0.500); round 1: 2.250" in label for label in labels)


def test_dvc_shows_each_round(folder: Path, html: str) -> None:
    assert html
    shown = json.loads((folder / "reports/metrics.json").read_text("utf-8"))["rounds"]
    assert shown["0"] == {"chosen": 0, "kl_to_reference": 0.4, "tokens": 20.5, "distinct": 0.62}
    assert shown["1"]["chosen"] == 1
    assert (shown["2"]["win_rate"], shown["2"]["stopping_win_rate"], shown["2"]["kl_to_reference"]) == (
        0.7,
        0.45,
        12.75,
    )


@pytest.mark.slow
def test_a_judge_of_the_test_prompts_that_made_the_pairs_is_named(
    page: Page, folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without permission to show texts, no pair is shown."""
    assert (
        "The judge that made the pairs is a model at an endpoint; the stopping judge, which did not, is the impl"
        in page.text
    )
    assert "no independent evidence" not in page.text
    monkeypatch.chdir(folder)
    changes = {"judge": {"kind": "implicit"}, "stopping_judge": None, "count": 2}
    report.main(settings(root, rounds=changes, report={"text_examples": 0}))
    text = Page(Path("reports/index.html").read_text("utf-8")).text
    assert "Its judge is the one that made the pairs , so it is no independent evidence" in text
    assert "No stopping judge was set, so nothing checks that judge." in text
    assert "Pairs of the last round" not in text


@pytest.mark.slow
def test_people_and_their_agreement_are_named(folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """People alone have no win rate on validation answers: no figure, and a dash in the table."""
    monkeypatch.chdir(folder)
    table, summary = Path("reports/rounds/table.csv"), Path("data/rounds/2/pairs/summary.json")
    kept = {path: path.read_bytes() for path in (table, summary)}
    rows = pd.read_csv(table)
    rows.loc[:, rows.columns.str.contains("win_rate|length_controlled|agreement|gap")] = float("nan")
    rows.to_csv(table, index=False)
    people = {"people": 2, "labels": 30, "comparisons": 20, "ties": 1, "skipped": 0, "compared_twice": 10}
    write_json(summary, {"people": people | {"agreement": 0.8, "kappa": 0.612}})
    changes = {"judge": {"kind": "people"}, "stopping_judge": None, "count": 2}
    report.main(settings(root, rounds=changes))
    page = Page(Path("reports/index.html").read_text("utf-8"))
    for path, content in kept.items():
        path.write_bytes(content)
    assert "The judge that made the pairs is people." in page.text
    assert (
        "In the last round, 2 people gave 30 labels on 20 comparisons; where two people compared the same answers, they agree "
        "in 80.0% of the cases, n = 10 (Fleiss’ kappa 0.61)."
    ) in page.text
    assert not any("round 1, judge:" in (a["aria-label"] or "") for tag, a in page.tags if tag == "svg")
    alone = rounds.labelled({**people, "people": 1, "labels": 1, "comparisons": 1})
    assert alone == [
        "In the last round, 1 person gave 1 label on 1 comparison; no comparison has votes of two people, so their "
        "agreement is unknown."
    ]
    assert rounds.labelled(None) == []


def test_several_judges_are_all_named() -> None:
    assert rounds._written('[{"kind": "implicit"}, {"kind": "endpoint", "model": "m", "timeout": 9}]') == (
        "implicit, endpoint (model m, timeout 9)"
    )
