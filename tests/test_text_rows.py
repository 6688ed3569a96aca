"""The text track between files and figures: what is scored, stale references, the stages' first step, the metrics."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import TARGETS, disturb, random_groups, training, with_lora, write_model
from torch import nn

from prefdag.artifacts import sha256, write_json
from prefdag.config import DpoText, FormatPairs, Lora, RefLogps
from prefdag.data.evals import EncodedRow
from prefdag.dpo import session
from prefdag.dpo.checkpoint import Checkpoints
from prefdag.dpo.trainer import History, Task, fit
from prefdag.errors import DataError, NumericError
from prefdag.text import evaluate, rows
from prefdag.text import model as lm
from prefdag.text.logps import score
from prefdag.text.packing import Group
from stages import dpo_text, ref_logps

EOS = 0
SPLITS = ("train", "val", "test")


def frame_of(n: int, seed: int = 0) -> pd.DataFrame:
    """Pairs as `format_pairs` writes them; every third chosen and every second rejected response was cut."""
    groups = random_groups(n, 2, seed)
    chosen, rejected = ([np.array([*g.responses[side], EOS]) for g in groups] for side in (0, 1))
    return pd.DataFrame(
        {
            "id": [f"{seed}-{i}" for i in range(n)],
            "prompt_ids": [np.array(g.prompt) for g in groups],
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "chosen_truncated": [i % 3 == 0 for i in range(n)],
            "rejected_truncated": [i % 2 == 0 for i in range(n)],
        }
    )


# What is scored


def test_the_eos_behind_a_cut_is_not_scored() -> None:
    frame = pd.DataFrame(
        {
            "prompt_ids": [np.array([5]), np.array([6, 7])],
            "chosen_ids": [np.array([1, 2, EOS]), np.array([3, EOS])],
            "chosen_truncated": [True, False],
            "rejected_ids": [np.array([4, EOS]), np.array([8, 9, EOS])],
            "rejected_truncated": [False, True],
        }
    )
    assert rows.scored(frame, "chosen") == [[1, 2], [3, EOS]]
    assert rows.scored(frame, "rejected") == [[4, EOS], [8, 9]]
    assert rows.pair_groups(frame) == [Group([5], ([1, 2], [4, EOS])), Group([6, 7], ([3, EOS], [8, 9]))]
    assert rows.chosen_groups(frame) == [Group([5], ([1, 2],)), Group([6, 7], ([3, EOS],))]


def test_eval_rows_are_scored_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question's answer ends; a sentence that was filled in, or cut, does not."""
    encoded = iter([EncodedRow([1], [2, EOS], True), EncodedRow([1], [3, 4, EOS], False)])
    limits: list[Any] = []

    def encode_row(row: Any, tokenizer: Any, max_prompt: int, max_response: int) -> EncodedRow:
        limits.append((max_prompt, max_response))
        return next(encoded)

    monkeypatch.setattr(rows, "encode_row", encode_row)
    config = FormatPairs(
        template="chat",
        max_prompt_tokens=7,
        max_response_tokens=9,
        max_pairs=None,
        val_fraction=0.1,
        test_fraction=0.1,
        seed=0,
    )
    anything: Any = object()
    assert rows.eval_groups([anything, anything], anything, config) == [Group([1], ([2, EOS],)), Group([1], ([3, 4],))]
    assert limits == [(7, 9), (7, 9)]


# The stages: a project of three splits and a tiny model


def write_project(root: Path, kind: str) -> None:
    dpo_text.PAIRS.mkdir(parents=True)
    for seed, split in enumerate(SPLITS):
        frame_of(8, seed).to_parquet(dpo_text.PAIRS / f"{split}.parquet")
    # The adapters' targets are looked up by the folder's name.
    write_model(root / kind, kind).rename(root / dpo_text.REFERENCE)


@pytest.fixture(params=list(TARGETS))
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of model that is the reference in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    write_project(tmp_path, request.param)
    return str(request.param)


@pytest.fixture
def histories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[History]:
    """What a stage measured, with `fit` in the place of `train_stage` and its tracking."""
    found: list[History] = []

    def train_stage(
        stage: str,
        params: Mapping[str, Any],
        model: nn.Module,
        train: Task,
        validation: Task,
        config: Any,
        seed: int,
        output: Path,
        save: Any,
        check_start: Any,
    ) -> None:
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        found.append(
            fit(
                model,
                train,
                validation,
                config,
                seed=seed,
                checkpoints=checkpoints,
                log=lambda *_: None,
                check_start=check_start,
            )
        )
        output.mkdir(parents=True)
        save(output)

    monkeypatch.setattr(session, "train_stage", train_stage)
    return found


def settings(kind: str) -> DpoText:
    lora = Lora(rank=4, alpha=8, dropout=0.0, target_modules=TARGETS[kind])
    return DpoText(label_smoothing=0.0, lora=lora, training=training(epochs=10, micro_batch_size=2))


def test_cached_references_are_those_of_each_pair(project: str) -> None:
    """Whatever the batches: a budget of 30 tokens cuts them elsewhere than one of 1000."""
    ref_logps.main.main(RefLogps(dtype="float32", tokens_per_batch=30))
    model = lm.load(dpo_text.REFERENCE)
    for split in SPLITS:
        frame = rows.read_split(dpo_text.PAIRS, split)
        cached = rows.read_ref_logps(dpo_text.REF_LOGPS, split, frame, dpo_text.PAIRS, dpo_text.REFERENCE)
        expected = score(model, rows.pair_groups(frame), 1000, split).reshape(-1, 2)
        assert cached["chosen_logps"].dtype == np.float64
        np.testing.assert_allclose(cached[["chosen_logps", "rejected_logps"]], expected, rtol=1e-5, atol=1e-4)


def test_dpo_starts_at_ln_2_and_learns(project: str, histories: list[History]) -> None:
    ref_logps.main.main(RefLogps(dtype="float32", tokens_per_batch=30))
    before = sha256(dpo_text.REFERENCE)
    dpo_text.main.main(0.5, "sigmoid", 0, settings(project))
    first, last = histories[0].train[0], histories[0].train[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert (first["rewards/chosen"], first["rewards/rejected"]) == pytest.approx((0, 0), abs=1e-4)
    assert last["loss"] < 0.5 * first["loss"]
    assert last["rewards/accuracy"] == 1.0
    assert sha256(dpo_text.REFERENCE) == before
    # What was saved is what was trained: its reward on the training rows goes on from the last step.
    frame = rows.read_split(dpo_text.PAIRS, "train")
    policy = lm.load_policy(dpo_text.REFERENCE, dpo_text.POLICY)
    scored, _ = evaluate.score_heldout(policy, rows.pair_groups(frame), 1000)
    assert (evaluate.add_rewards(scored, 0.5)["margin"] > 0.1).all()


def test_dpo_is_a_function_of_its_seed(project: str, histories: list[History]) -> None:
    ref_logps.main.main(RefLogps(dtype="float32", tokens_per_batch=30))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        dpo_text.main.main(0.5, "sigmoid", seed, settings(project))
        dpo_text.POLICY.rename(name)
    torch.set_num_threads(threads)
    assert sha256(Path("a")) == sha256(Path("b")) != sha256(Path("c"))


def test_wrong_references_stop_dpo_at_its_first_step(project: str, histories: list[History]) -> None:
    ref_logps.main.main(RefLogps(dtype="float32", tokens_per_batch=30))
    path = dpo_text.REF_LOGPS / "train.parquet"
    frame = pd.read_parquet(path)
    frame.assign(chosen_logps=frame["chosen_logps"] + 0.1).to_parquet(path)
    with pytest.raises(NumericError, match="the policy is not its reference"):
        dpo_text.main.main(0.5, "sigmoid", 0, settings(project))
    assert not dpo_text.POLICY.exists()


def read() -> pd.DataFrame:
    frame = rows.read_split(dpo_text.PAIRS, "train")
    return rows.read_ref_logps(dpo_text.REF_LOGPS, "train", frame, dpo_text.PAIRS, dpo_text.REFERENCE)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs, a reference that is one file, and log-probabilities that belong to both."""
    monkeypatch.chdir(tmp_path)
    for folder in (dpo_text.PAIRS, dpo_text.REFERENCE, dpo_text.REF_LOGPS):
        folder.mkdir(parents=True)
    (dpo_text.REFERENCE / "model.safetensors").write_bytes(b"weights")
    frame = frame_of(5)
    frame.to_parquet(dpo_text.PAIRS / "train.parquet")
    logps = pd.DataFrame({"id": frame["id"], "chosen_logps": -1.0, "rejected_logps": np.arange(5.0)})
    logps.to_parquet(dpo_text.REF_LOGPS / "train.parquet")
    key = rows.reference_key(dpo_text.PAIRS, dpo_text.REFERENCE, "float32")
    write_json(dpo_text.REF_LOGPS / "key.json", key)


@pytest.mark.usefixtures("cached")
def test_references_of_the_same_pairs_and_model_are_used() -> None:
    assert read()["rejected_logps"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("cached")
def test_references_of_other_pairs_are_refused() -> None:
    """The same ids, another truncation."""
    frame_of(5).assign(chosen_truncated=False).to_parquet(dpo_text.PAIRS / "train.parquet")
    with pytest.raises(DataError, match=r"key.json: pairs_sha256 is .*; run ref_logps again"):
        read()


@pytest.mark.usefixtures("cached")
def test_references_of_another_model_are_refused() -> None:
    (dpo_text.REFERENCE / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(DataError, match=r"key.json: reference_sha256 is .*; run ref_logps again"):
        read()


@pytest.mark.usefixtures("cached")
def test_references_in_another_order_are_refused() -> None:
    path = dpo_text.REF_LOGPS / "train.parquet"
    pd.read_parquet(path).iloc[::-1].to_parquet(path)
    with pytest.raises(DataError, match="rows differ"):
        read()


@pytest.mark.usefixtures("cached")
def test_a_split_without_pairs_is_named() -> None:
    frame_of(5).head(0).to_parquet(dpo_text.PAIRS / "val.parquet")
    with pytest.raises(DataError, match=r"val.parquet: no pairs"):
        rows.read_split(dpo_text.PAIRS, "val")


# Metrics

GROUPS = [Group([1], ([2, 3, 4],)), Group([5, 6], ([7],))]


def test_cross_entropy_is_weighted_by_tokens() -> None:
    """-(-6 - 2) / (3 + 1) = 2 nats a token; not the mean over rows, (6 / 3 + 2 / 1) / 2 = 2, hence the second case.

    -(-3 - 5) / 4 = 2, where the mean over rows is (1 + 5) / 2 = 3. Prompts do not count.
    """
    expected = {"cross_entropy": 2.0, "perplexity": pytest.approx(math.exp(2))}
    assert evaluate.cross_entropy(np.array([-6.0, -2.0]), GROUPS) == expected
    assert evaluate.cross_entropy(np.array([-3.0, -5.0]), GROUPS) == expected
    assert evaluate.n_tokens(GROUPS) == 4


def test_set_metrics_and_their_table() -> None:
    logps = {"base": np.array([-8.0, -4.0]), "reference": np.array([-4.0, -4.0]), "policy": np.array([-2.0, -2.0])}
    metrics = {"winogrande": evaluate.set_metrics(logps, GROUPS)}
    assert (metrics["winogrande"]["n_rows"], metrics["winogrande"]["n_tokens"]) == (2, 4)
    table = evaluate.table(metrics)
    columns = ["set", "model", "cross_entropy", "perplexity", "n_tokens", "n_rows"]
    assert list(table.columns) == columns
    assert table["model"].tolist() == ["base", "reference", "policy"]
    assert table["cross_entropy"].tolist() == [3.0, 2.0, 1.0]
    assert set(table["set"]) == {"winogrande"}


def test_rewards_by_hand() -> None:
    """beta 0.5: 0.5 * (-1 - -3) = 1 and 0.5 * (-4 - -2) = -1: margin 2."""
    frame = pd.DataFrame(
        {
            "policy_chosen_logps": [-1.0],
            "policy_rejected_logps": [-4.0],
            "ref_chosen_logps": [-3.0],
            "ref_rejected_logps": [-2.0],
        }
    )
    found = evaluate.add_rewards(frame, 0.5)
    assert (
        found.iloc[0].to_dict()
        == {"reward_chosen": 1.0, "reward_rejected": -1.0, "margin": 2.0} | frame.iloc[0].to_dict()
    )


def test_heldout_metrics_take_each_model_from_its_place() -> None:
    frame = pd.DataFrame(
        {
            "policy_chosen_logps": [-1.0, -3.0],
            "policy_rejected_logps": [-4.0, -4.0],
            "ref_chosen_logps": [-3.0, -5.0],
            "ref_rejected_logps": [-2.0, -6.0],
        }
    )
    found = evaluate.heldout_metrics(evaluate.add_rewards(frame, 0.5), 0.25, np.array([-6.0, -6.0]), GROUPS)
    assert [found[name]["cross_entropy"] for name in ("base", "reference", "policy")] == [3.0, 2.0, 1.0]
    assert (found["n_pairs"], found["n_rows"], found["n_tokens"], found["kl"]) == (2, 2, 4, 0.25)
    # Rewards 1 and 1 against -1 and 1: margins 2 and 0.
    rewards = found["rewards"]
    assert (rewards["chosen"], rewards["rejected"], rewards["margin"], rewards["accuracy"]) == (1, 0, 1, 0.5)


@pytest.mark.parametrize("kind", TARGETS)
def test_heldout_scores_equal_a_naive_loop(tmp_path: Path, kind: str) -> None:
    """KL(policy || reference) = sum over the vocabulary of p (ln p - ln q), at every scored position of both responses."""
    policy = with_lora(write_model(tmp_path / kind, kind)).eval()
    disturb(policy)
    pairs = random_groups(7, 2, seed=4)
    frame, kl = evaluate.score_heldout(policy, pairs, max_tokens=40)

    logps: dict[str, list[float]] = {"policy": [], "ref": []}
    kls: list[float] = []
    with torch.no_grad():
        for prompt, responses in pairs:
            for response in responses:
                ids = torch.tensor([[*prompt, *response]])
                whole = {"input_ids": ids, "segments": [(0, len(prompt), (len(response),))]}
                p = policy(**whole).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                with policy.disable_adapter():
                    q = policy(**whole).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                for name, values in (("policy", p), ("ref", q)):
                    logps[name].append(sum(float(row[token]) for row, token in zip(values, response, strict=True)))
                kls += (p.exp() * (p - q)).sum(-1).tolist()

    assert kl == pytest.approx(sum(kls) / len(kls), rel=1e-4)
    assert kl > 0.01
    for name, values in logps.items():
        assert frame[f"{name}_chosen_logps"].tolist() == pytest.approx(values[0::2], abs=1e-4)
        assert frame[f"{name}_rejected_logps"].tolist() == pytest.approx(values[1::2], abs=1e-4)


def test_score_policy_tells_the_policy_from_its_reference(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "llama", "llama")
    policy = with_lora(folder).eval()
    disturb(policy)
    found = evaluate.score_policy(policy, GROUPS, 100, "test")
    assert np.array_equal(found["reference"], score(lm.load(folder), GROUPS, 100, "test"))
    assert np.array_equal(found["policy"], score(policy, GROUPS, 100, "test"))
    assert np.abs(found["policy"] - found["reference"]).max() > 0.01
