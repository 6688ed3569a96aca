"""The study of few pairs, on a tiny random model: what its arms share, what it measures, and what its tables say."""

import csv
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from format_settings import format_settings
from paths import ROOT
from tasks import without_tracking
from text_project import dpo_settings
from tiny_models import ADAPTERS, disturb, with_adapter, write_model
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks import few_shot as study
from benchmarks.few_shot import BASE, GENERAL, NEW, OLD, VAL, Arm
from prefdag.check_params import load_params
from prefdag.lifecycle.errors import DataError
from prefdag.pairs.schema import read_pairs, write_pairs
from prefdag.runtime.artifacts import sha256
from prefdag.text import model as lm
from prefdag.text import trainable
from stages import format_pairs

FORMAT = format_settings(max_prompt_tokens=16, max_response_tokens=8, max_left_out=0.0, val_fraction=0.2)


def write_tokenizer(folder: Path) -> None:
    """One token per word, within the vocabulary of the tiny models."""
    words = {
        word: i for i, word in enumerate(["</s>", "<unk>", "is", "it", "no", "yes", "a", "b", *map(str, range(40))])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}')


def write_questions(path: Path, rows: int) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Question", "Best Answer", "Incorrect Answers"])
        writer.writerows([[f"is {i} it", f"no {i % 7}", f" yes {i % 5} ; other"] for i in range(rows)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[study.Study]:
    """The study after its run, with two seeds and up to six pairs."""
    folder = tmp_path_factory.mktemp("few_shot")
    (folder / "raw").mkdir()
    lines = [f'{{"prompt": "{i}", "chosen": "a {i}", "rejected": "b"}}' for i in range(30)]
    (folder / "raw/rows.jsonl").write_text("\n".join(lines))
    write_questions(folder / "questions.csv", 40)
    params = replace(load_params(ROOT / "params.yaml"), format_pairs=FORMAT, dpo_text=dpo_settings())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_tracking(patch, folder / "checkpoints")
        patch.setattr(study, "RESULTS", folder / "few_shot.csv")
        patch.setattr(study, "SHA256", sha256(folder / "questions.csv"))
        patch.setattr(study, "SEEDS", (0, 1))
        patch.setattr(study, "COUNTS", (2, 6))
        patch.setattr(study, "TUNED_ON", 6)
        format_pairs.PAIRS.parent.mkdir(parents=True)
        write_pairs(format_pairs.PAIRS, read_pairs(folder / "raw", "plain"))
        write_tokenizer(write_model(Path("models/base"), "llama", eos_token_id=0))
        format_pairs.main(FORMAT)
        shutil.copytree("models/base", "models/reference")
        policy = with_adapter(Path("models/reference"), ADAPTERS["lora"])
        disturb(policy)
        Path("models/dpo_text").mkdir()
        trainable.save_policy(policy, Path("models/dpo_text"), Path("models/reference"))
        own = study.Study(folder, folder / "questions.csv", folder / "work", params)
        study.run(own)
        yield own


@pytest.mark.slow
def test_the_general_policy_is_merged(finished: study.Study) -> None:
    pairs = finished.sets[NEW]
    ids = [list(map(int, pairs.part(row, 0))) for row in range(len(pairs))]
    from prefdag.export import text

    policy = lm.load_models(Path("models/reference"), Path("models/dpo_text"), packed=False).policy
    merged, base = (text.logits(lm.load(finished.starts[start], packed=False), ids) for start in (GENERAL, BASE))
    expected = text.logits(policy, ids)
    assert float((merged - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert float((base - expected).abs().max()) > 0.01 * float(expected.abs().max())


@pytest.mark.slow
def test_fewer_pairs_are_the_first_of_more(finished: study.Study) -> None:
    """All arms of a seed see the same ones, and none of a held-out set."""
    few, more = (study.drawn(finished, n, 1).ids for n in (2, 6))
    assert few == more[:2]
    assert study.drawn(finished, 6, 0).ids != more
    held = [set(finished.sets[name].ids) for name in (NEW, VAL)]
    assert not any(each & set(finished.new["train"].ids) for each in held)
    assert not held[0] & held[1]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(finished: study.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained or scored again, and the results are the same."""
    before = study.RESULTS.read_bytes()
    monkeypatch.setattr(study, "trained", None)
    monkeypatch.setattr("prefdag.text.scoring.logps.all_pair_logps", None)
    study.run(study.Study(finished.general, finished.truthfulqa, finished.work, finished.params))
    assert study.RESULTS.read_bytes() == before


@pytest.mark.slow
def test_a_start_has_no_reward_over_itself(finished: study.Study) -> None:
    rows = pd.read_csv(study.RESULTS).fillna({"against": "", "kind": ""})
    starts = rows[(rows["pairs"] == 0) & (rows["against"] == "") & (rows["seed"] == "all")].set_index(["start", "set"])
    assert (starts["own"] == 0.5).all()
    assert (starts["kl"] == 0).all()
    assert starts.loc[(BASE, OLD), "reward"] == 0.5 != starts.loc[(GENERAL, OLD), "reward"]
    trained = rows[(rows["pairs"] == 6) & (rows["against"] == "")]
    assert (trained["kl"] > 0).all()
    assert set(trained["steps"]) == {4}


@pytest.mark.slow
def test_the_tables_name_every_arm(finished: study.Study) -> None:
    text = study.table()
    assert all(f"| {start}, {kind} | " in text for kind, starts in study.STARTS.items() for start in starts)
    assert "nan" not in text


def logps(chosen: list[float], rejected: list[float], of: str = NEW) -> pd.DataFrame:
    tokens = {"chosen_tokens": [2] * len(chosen), "rejected_tokens": [1] * len(chosen)}
    columns = {"set": of, "id": list("abcd")[: len(chosen)], "chosen": chosen, "rejected": rejected, **tokens}
    return pd.DataFrame(columns).set_index(["set", "id"])


def test_measures_by_hand() -> None:
    base, start = logps([-4.0, -4.0], [-3.0, -1.0]), logps([-3.0, -4.0], [-3.0, -1.0])
    found = study.measured(logps([-3.0, -6.0], [-3.0, -2.0]), start[::-1], base)
    assert found["reward"].tolist() == [1.0, 0.0]  # +1 against 0; -2 against -1
    assert found["own"].tolist() == [0.5, 0.0]
    assert found["likely"].tolist() == [1.0, 0.0]  # -1.5 against -3; -3 against -2
    assert found["chosen"].tolist() == [-1.5, -3.0]
    assert found["kl"].tolist() == [0.0, (2**2 + 1**2) / 4]


def test_loss_and_kl_are_of_validation_pairs() -> None:
    start = pd.concat([logps([-1.0], [-1.0], VAL), logps([-1.0], [-1.0])])
    policy = pd.concat([logps([1.0], [-1.0], VAL), logps([-9.0], [-1.0])])
    assert study.loss_and_kl(policy, start, 0.5) == pytest.approx((np.log(1 + np.exp(-1.0)), 2**2 / 4))


@pytest.mark.parametrize(("budget", "chosen"), [(100.0, 3e-3), (10.0, 1e-3), (0.1, 1e-3)])
def test_the_lower_loss_within_the_kl_budget_wins(
    budget: float, chosen: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lowest rate, if none is within it."""
    params = load_params(ROOT / "params.yaml")
    params = replace(params, health_text=replace(params.health_text, kl_budget=budget))
    start = logps([-1.0], [-1.0], VAL)
    found = {1e-3: logps([1.0], [-3.0], VAL), 3e-3: logps([9.0], [-9.0], VAL)}
    monkeypatch.setattr(study, "of_start", lambda *_: start)
    monkeypatch.setattr(study, "of_arm", lambda own, arm, seed, rate: found[rate])
    assert study.best_rate(study.Study(Path(), Path(), Path(), params), "lora", BASE) == chosen


def test_differences_are_paired_by_pair() -> None:
    """Two seeds of an arm, and the start with its rows in another order."""

    def table(reward: str, order: int = 1) -> pd.DataFrame:
        values: dict[str, Any] = {"set": NEW, "id": list("abcd"), "reward": [float(mark) for mark in reward]}
        one = pd.DataFrame({**values, "own": 0.5, "likely": 0.5, "chosen": -1.0, "kl": 0.0})
        return pd.concat([one, one.assign(set=OLD)])[::order].set_index(["set", "id"])

    arm, same = Arm(BASE, "lora", 8), Arm(BASE, "lora", 32)
    every = {
        (Arm(BASE, "", 0), 0): table("1100", -1),
        (arm, 0): table("1110"),
        (arm, 1): table("1111"),
        (same, 0): table("1100"),
    }
    found = pd.DataFrame(study.results(every, {("lora", BASE): 1e-3})).set_index(["set", "pairs", "seed", "against"])
    assert found.loc[(NEW, 8, "all", ""), "reward"] == 0.875
    assert found.loc[(NEW, 8, "all", "start"), "reward"] == 0.375
    assert found.loc[(NEW, 32, "all", "start"), ["reward_low", "reward_high"]].tolist() == [0, 0]
    assert found.loc[(NEW, 8, "all", "start"), "reward_low"] <= 0 < found.loc[(NEW, 8, "all", "start"), "reward_high"]


def test_another_file_than_truthfulqa_is_refused(tmp_path: Path) -> None:
    write_questions(tmp_path / "TruthfulQA.csv", 3)
    with pytest.raises(
        DataError, match=r"^TruthfulQA\.csv: its SHA-256 is [0-9a-f]{64}, not .*; use TruthfulQA\.csv of "
    ):
        list(study.pairs_of(tmp_path / "TruthfulQA.csv"))
