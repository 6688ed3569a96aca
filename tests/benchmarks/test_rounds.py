"""The study of rounds, on a tiny model: what its arms share, and what its tables say."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from format_settings import format_settings
from paths import ROOT
from tasks import without_tracking
from text_project import dpo_settings
from tiny_models import write_model, write_word_tokenizer

from benchmarks import round_arms as arms
from benchmarks import rounds as study
from prefdag.check_params import check_params
from prefdag.config.ref_logps import RefLogps
from prefdag.pairs.schema import read_pairs, write_pairs
from prefdag.runtime.yaml import read_yaml
from stages import dpo_text, format_pairs, ref_logps

pytestmark = pytest.mark.slow

WORDS = ["Use", "at", "most", "words", "."]
FORMAT = format_settings(max_prompt_tokens=16, max_response_tokens=8, max_left_out=0.0, val_fraction=0.2)
ARMS = [*arms.ARMS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[arms.Study]:
    """The study after its run, on 36 prompts."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "raw").mkdir()
    lines = [
        {"prompt": f"{i} Use at most {3 + i % 2} words .", "chosen": f"{i}", "rejected": f"{i} 1 2 3 4 5"}
        for i in range(36)
    ]
    (folder / "raw" / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tree = read_yaml(ROOT / "params.yaml")
    tree["rounds"] |= {"max_new_tokens": 6, "samples": 3}
    tree["answer_text"]["max_new_tokens"] = 6
    params = replace(check_params(tree, Path("params.yaml")), format_pairs=FORMAT, dpo_text=dpo_settings())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_tracking(patch, folder / "checkpoints")
        patch.setattr(study, "RESULTS", folder / "rounds.csv")
        patch.setattr(study, "RATES", (1e-3, 1e-2))
        patch.setattr(study, "SEEDS", (0,))
        format_pairs.PAIRS.parent.mkdir(parents=True)
        write_pairs(format_pairs.PAIRS, read_pairs(folder / "raw", "plain"))
        write_word_tokenizer(write_model(Path("models/base"), "llama", eos_token_id=0), WORDS)
        format_pairs.main(FORMAT)
        shutil.copytree("models/base", dpo_text.REFERENCE)
        ref_logps.main(RefLogps(dtype="float32", tokens_per_batch=100, shard="none"))
        dpo_text.main(params.beta, params.loss, 0, params.loss_options, {}, dpo_settings(epochs=2))
        own = arms.Study(folder, folder / "work", params, prompts=8)
        study.run(own)
        yield own


def test_arms_have_the_same_prompts_and_nearly_the_same_budget(finished: arms.Study) -> None:
    twice, single = (finished.rounds(0, n) for n in (16, 8))
    of_two = [arms.prompts_of_round(finished, single, number)["id"].tolist() for number in (1, 2)]
    assert sorted(of_two[0] + of_two[1]) == sorted(arms.prompts_of_round(finished, twice, 1)["id"])
    found = pd.read_csv(study.RESULTS)
    rows = found[(found["seed"] == "0") & found["against"].isna()].drop_duplicates("arm").set_index("arm")["rows"]
    one, best, given = (rows[arm] for arm in ARMS[1:4])
    assert one == best == given


def test_the_first_of_two_rounds_has_the_samples_of_the_single_one(finished: arms.Study) -> None:
    """As if it had sampled by itself."""
    single, twice = (finished.rounds(0, n) for n in (8, 16))
    alone, shared = (
        arms.sample(finished, rounds, 1, finished.start).set_index(["id", "sample"]) for rounds in (single, twice)
    )
    assert alone["text"].equals(shared["text"].loc[alone.index])


def test_a_run_that_was_stopped_goes_on(finished: arms.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained or generated again, and the results are the same."""
    before = study.RESULTS.read_bytes()
    monkeypatch.setattr(arms, "fit_and_save", None)
    monkeypatch.setattr("prefdag.text.sharded.load_both", None)
    study.run(finished)
    assert study.RESULTS.read_bytes() == before


def test_the_right_answers_are_right(finished: arms.Study) -> None:
    answers, _ = arms.judged(finished, 0)
    right = answers[answers["score"] == 1]
    assert 0 < len(right) < len(answers)
    limits = right["prompt"].str.extract(r"most (\d+)")[0].astype(int)
    assert (right["text"].str.split().str.len() <= limits).all()


def test_differences_are_paired_by_prompt() -> None:
    """Two seeds of an arm and the start, on four prompts; the rows of one table are in another order."""

    def answers(followed: str) -> pd.DataFrame:
        one = pd.DataFrame({"id": list("abcd"), "followed": [mark == "1" for mark in followed]})
        one = one.assign(tokens=3, ended=True, repetition=0.0, kind="word", ids=[[1, 2, 3]] * 4)
        return pd.concat([one.assign(decoding="greedy"), one.assign(decoding="sampled")], ignore_index=True)

    every = {
        ("start", 0): answers("1100"),
        ("two rounds", 0): answers("1110")[::-1],
        ("two rounds", 1): answers("1111"),
    }
    found = pd.DataFrame(study.results(every, {key: {} for key in every}))
    greedy = found[found["decoding"] == "greedy"].set_index(["arm", "seed", "against"])
    assert greedy.loc[("two rounds", "all", ""), "followed"] == 0.875
    assert greedy.loc[("two rounds", 0, "start"), "difference"] == 0.25
    assert greedy.loc[("two rounds", "all", "start"), "difference"] == 0.375


def test_the_tables_name_every_arm(finished: arms.Study) -> None:
    text = study.table()
    assert all(f"| {arm} |" in text for arm in ["start", *ARMS])
    assert "nan" not in text
