"""The text track from files to metrics: scored tokens, stale references, the stages' first step, and the metrics."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from answer_settings import answer_settings
from format_settings import format_settings
from gradients import PRECISIONS, assert_close, gradients
from naive_logps import naive_logps
from safetensors.torch import load_file
from scipy import stats
from tasks import NO_OPTIONS, preference_of, slow, without_tracking
from text_project import EOS, SPLITS, dpo_settings, frame_of, pairs_of, write_text_project
from tiny_models import TARGETS, disturb, lora, random_groups, training, with_lora, write_model
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from torch import nn
from transformers import AutoModelForCausalLM

from prefdag.config.control_text import ControlText
from prefdag.config.evaluate_text import EvaluateText
from prefdag.config.health import Health
from prefdag.config.judge_text import JudgeText
from prefdag.config.judges import ImplicitJudge
from prefdag.config.loss_options import LossOptions
from prefdag.config.ref_logps import RefLogps
from prefdag.config.sft_ref import SftRef, SupervisedTraining
from prefdag.dpo.pair_batch import PairBatch, Response
from prefdag.lifecycle.errors import DataError, NumericError
from prefdag.pairs.encoding import PAIRS_SCHEMA, columns_of, encode_pair
from prefdag.pairs.limits import Limits
from prefdag.pairs.schema import read_pairs, write_pairs
from prefdag.report.page.figures import Line, has
from prefdag.report.page.results import read_histories
from prefdag.runtime.artifacts import read_json, sha256, write_json
from prefdag.stats.intervals import difference, roc_area
from prefdag.stats.rewards import reward_metrics, unpaired_reward_metrics
from prefdag.text import model as lm
from prefdag.text import trainable
from prefdag.text.evaluation import choices, eval_logps, eval_rows
from prefdag.text.evaluation import metrics as evaluate
from prefdag.text.evaluation.eval_rows import EncodedRow
from prefdag.text.scoring import rows
from prefdag.text.scoring.formatted import of_batch
from prefdag.text.scoring.logps import Pair, PairLogps, all_pair_logps, group_logps, pair_logps
from prefdag.text.scoring.packing import Group
from prefdag.tokenizer.tokenizer import ChatTokenizer
from prefdag.train.loop import History
from stages import (
    answer_text,
    control_text,
    dpo_text,
    evaluate_text,
    format_pairs,
    health_text,
    judge_text,
    ref_answers,
    ref_evals,
    ref_logps,
    select_policy,
    sft_ref,
)

# Scored tokens


def listed(ids: Any) -> Any:
    """Rows of token ids with lists in the place of arrays."""
    if isinstance(ids, np.ndarray):
        return ids.tolist()
    return ids if ids is None else (tuple if isinstance(ids, tuple) else list)(map(listed, ids))


def test_the_eos_after_a_cut_is_not_scored() -> None:
    frame = pd.DataFrame(
        {
            "id": ["a", "b"],
            "preference": 1.0,
            "prompt_ids": [np.array([5]), np.array([6, 7])],
            "chosen_ids": [np.array([1, 2, EOS]), np.array([3, EOS])],
            "chosen_truncated": [True, False],
            "rejected_ids": [np.array([4, EOS]), np.array([8, 9, EOS])],
            "rejected_truncated": [False, True],
        }
    )
    pairs = pairs_of(frame)
    assert listed(rows.pair_rows(pairs)) == [([5], [1, 2], [4, EOS], None), ([6, 7], [3, EOS], [8, 9], None)]
    assert rows.presence(pairs) is None
    assert listed(rows.chosen_groups(pairs)) == [([5], ([1, 2],)), ([6, 7], ([3, EOS],))]


def test_an_absent_response_is_never_scored() -> None:
    """The middle row is undesirable: nothing to imitate. A row's mismatched response is any response of the next row."""
    nothing = np.array([], dtype=np.int32)
    frame = pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "preference": 1.0,
            "prompt_ids": [np.array([5]), np.array([6]), np.array([7])],
            "chosen_ids": [np.array([1, EOS]), nothing, np.array([2, EOS])],
            "rejected_ids": [nothing, np.array([3, 4, EOS]), nothing],
            "chosen_truncated": False,
            "rejected_truncated": [False, True, False],
        }
    )
    pairs = pairs_of(frame)
    assert listed(rows.pair_rows(pairs, mismatched=True)) == [
        ([5], [1, EOS], None, [3, 4]),
        ([6], None, [3, 4], [2, EOS]),
        ([7], [2, EOS], None, [1, EOS]),
    ]
    taught = rows.with_chosen(pairs)
    assert taught.ids == ["a", "c"]
    assert listed(rows.chosen_groups(taught)) == [([5], ([1, EOS],)), ([7], ([2, EOS],))]
    present = rows.presence(pairs)
    assert present is not None
    assert [has.tolist() for has in present] == [[1, 0, 1], [0, 1, 0]]
    assert present[0].dtype == torch.float32


def test_eval_rows_are_scored_with_an_eos_only_if_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer to a question ends; a filled-in sentence does not, nor does a response that was cut."""
    encoded = iter([EncodedRow([1], [2, EOS], True), EncodedRow([1], [3, 4, EOS], False)])
    limits: list[Any] = []

    def encode_row(row: Any, tokenizer: Any, max_prompt: int, max_response: int) -> EncodedRow:
        limits.append((max_prompt, max_response))
        return next(encoded)

    monkeypatch.setattr(eval_rows, "encode_row", encode_row)
    anything: Any = object()
    assert eval_rows.eval_groups([anything, anything], anything, Limits(7, 9)) == [
        Group([1], ([2, EOS],)),
        Group([1], ([3, 4],)),
    ]
    assert limits == [(7, 9), (7, 9)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("seed", range(4))
def test_a_cut_dialogue_is_scored_as_if_alone(kind: str, dtype: Any, seed: int, tmp_path: Path) -> None:
    """Dialogues of one to five turns, encoded from text, with prompts and responses cut: values and gradients.

    Shared prompts and padded rows against a plain model of each response alone, whose tokens are cut here by hand.
    """
    draw = np.random.default_rng(seed)
    folder = write_model(tmp_path / kind, kind, seed)
    write_tokenizer(folder)
    tokenizer = ChatTokenizer(folder, "instruction")
    most_prompt, most_response = 24, 6

    def words() -> str:
        return " ".join(draw.choice(WORDS[3:], draw.integers(1, 11)))

    records, alone, cut = [], [], []
    for number in range(6):
        roles = ["user", "assistant"] * draw.integers(0, 3) + ["user"]
        prompt = [{"role": role, "content": words()} for role in roles]
        answers = {"chosen": words(), "rejected": words()}
        row = {"id": f"{number}", "source": "rows.jsonl:1", "prompt": prompt, "preference": 1.0} | answers
        records.append(columns_of(encode_pair(row, tokenizer, most_prompt, most_response)))
        prompt_ids = tokenizer.prompt(prompt).ids
        encoded = [[WORDS.index(word) for word in answer.split()] + [EOS] for answer in answers.values()]
        scored = (ids if len(ids) <= most_response else ids[: most_response - 1] for ids in encoded)
        alone.append(Group(prompt_ids[-most_prompt:], tuple(scored)))
        cut += [len(prompt_ids) > most_prompt, *(len(ids) > most_response for ids in encoded)]
    assert set(cut) == {True, False}
    pairs = rows.pair_rows(of_batch(pa.RecordBatch.from_pylist(records, schema=PAIRS_SCHEMA)))
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = naive_logps(plain, alone)
    of_expected = gradients(expected, plain)
    off, relative = PRECISIONS[dtype]
    for shared in (True, False):
        model = lm.load(folder, dtype, packed=shared)
        logps = pair_logps(model, pairs)
        scores = torch.stack([logps.chosen.logps, logps.rejected.logps], dim=1).flatten()
        torch.testing.assert_close(scores, expected, rtol=0, atol=off)
        # The largest error in 20 draws was 0.21 in bfloat16 and 4e-6 in float32.
        assert_close(gradients(scores, model), of_expected, 2 * relative)


# The stages: a project of three splits and a tiny model


@pytest.fixture(params=list(TARGETS))
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of model that is the reference, in a project in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    write_text_project(tmp_path, request.param)
    return str(request.param)


@pytest.fixture
def histories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[History, nn.Module]]:
    """The history of each training stage and the model that it trained."""
    return without_tracking(monkeypatch, tmp_path / "checkpoints")


OPTIONS = LossOptions(**NO_OPTIONS)


def train(loss: Any = "sigmoid", seed: int = 0, **changes: Any) -> None:
    """Run stage dpo_text with beta 0.5."""
    dpo_text.main(0.5, loss, seed, OPTIONS, {}, dpo_settings(**changes))


@pytest.mark.slow
def test_cached_references_do_not_depend_on_batches(project: str) -> None:
    """A budget of 30 tokens makes other batches than one of 1000."""
    ref_logps.main(RefLogps(dtype="float32", tokens_per_batch=30, shard="none"))
    model = lm.load(dpo_text.REFERENCE)
    assert {path.stem for path in dpo_text.REF_LOGPS.glob("*.parquet")} == {"train", "val"}
    for split in ("train", "val"):
        pairs = rows.read_split(dpo_text.PAIRS, split)
        cached = rows.read_ref_logps(dpo_text.REF_LOGPS, split, pairs.ids, dpo_text.PAIRS, dpo_text.REFERENCE)
        groups = [pair.group for pair in rows.pair_rows(pairs)]
        expected = torch.tensor(group_logps(model, groups, 1000, split).reshape(-1, 2), dtype=torch.float32)
        logps = torch.stack([cached.chosen.logps, cached.rejected.logps], dim=1)
        torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_dpo_starts_at_ln_2_and_learns(project: str, histories: list[tuple[History, nn.Module]]) -> None:
    ref_logps.main(RefLogps(dtype="float32", tokens_per_batch=30, shard="none"))
    before = sha256(dpo_text.REFERENCE)
    train()
    ((history, _),) = histories
    first, last = history.train[0], history.train[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert (first["rewards/chosen"], first["rewards/rejected"]) == pytest.approx((0, 0), abs=1e-4)
    assert last["loss"] < 0.5 * first["loss"]
    assert last["rewards/accuracy"] == 1.0
    assert sha256(dpo_text.REFERENCE) == before
    # The saved policy is the trained one: on the training rows its rewards prefer the chosen responses.
    pairs = rows.pair_rows(rows.read_split(dpo_text.PAIRS, "train"))
    models = lm.load_models(dpo_text.REFERENCE, dpo_text.POLICY)
    batch = evaluate.compare_heldout(models, pairs, 1000).batch
    assert (evaluate.heldout_table(batch, preference_of("sigmoid").rewards(batch))["margin"] > 0.1).all()


@pytest.mark.slow
@pytest.mark.usefixtures("project", "histories", "one_thread")
def test_dpo_is_a_function_of_its_seed() -> None:
    ref_logps.main(RefLogps(dtype="float32", tokens_per_batch=30, shard="none"))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(seed=seed)
        dpo_text.POLICY.rename(name)
    assert sha256(Path("a")) == sha256(Path("b")) != sha256(Path("c"))


@pytest.mark.slow
@pytest.mark.usefixtures("project", "histories")
def test_wrong_references_stop_dpo_before_or_at_its_first_step() -> None:
    """Before the first step if one of the rows that are scored again is wrong, at the first step if only others are."""
    ref_logps.main(RefLogps(dtype="float32", tokens_per_batch=30, shard="none"))
    path = dpo_text.REF_LOGPS / "train.parquet"
    frame = pd.read_parquet(path)
    wrong = frame["chosen_logps"] + 0.1
    frame.assign(chosen_logps=wrong).to_parquet(path)
    with pytest.raises(DataError, match=r"train.parquet: row 0: chosen_logps: .* run ref_logps again"):
        train()
    checked = [0, len(frame) // 2, len(frame) - 1]
    frame.assign(chosen_logps=wrong.where(~frame.index.isin(checked), frame["chosen_logps"])).to_parquet(path)
    with pytest.raises(NumericError, match="the policy differs from its reference"):
        train()
    assert not dpo_text.POLICY.exists()


def read() -> PairLogps:
    ids = rows.read_split(dpo_text.PAIRS, "train").ids
    return rows.read_ref_logps(dpo_text.REF_LOGPS, "train", ids, dpo_text.PAIRS, dpo_text.REFERENCE)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs, a reference of one file, and log-probabilities with a key that matches both."""
    monkeypatch.chdir(tmp_path)
    for folder in (dpo_text.PAIRS, dpo_text.REFERENCE, dpo_text.REF_LOGPS):
        folder.mkdir(parents=True)
    (dpo_text.REFERENCE / "model.safetensors").write_bytes(b"weights")
    frame = frame_of(5)
    frame.to_parquet(dpo_text.PAIRS / "train.parquet")
    logps = pd.DataFrame({"id": frame["id"], **dict.fromkeys(rows.REF_COLUMNS, -1.0)})
    logps.assign(rejected_logps=np.arange(5.0)).to_parquet(dpo_text.REF_LOGPS / "train.parquet")
    key = rows.reference_key(dpo_text.PAIRS, dpo_text.REFERENCE, "float32")
    write_json(dpo_text.REF_LOGPS / "key.json", key)


@pytest.mark.usefixtures("cached")
def test_references_of_the_same_pairs_and_model_are_used() -> None:
    assert read().rejected.logps.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("cached")
def test_references_of_other_pairs_are_refused() -> None:
    """They have the same ids, but were truncated differently."""
    frame_of(5).assign(chosen_truncated=False).to_parquet(dpo_text.PAIRS / "train.parquet")
    with pytest.raises(DataError, match=r"key.json: pairs_sha256 is .*; run ref_logps again"):
        read()


@pytest.mark.usefixtures("cached")
def test_references_of_another_model_are_refused() -> None:
    (dpo_text.REFERENCE / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(DataError, match=r"key.json: reference_sha256 is .*; run ref_logps again"):
        read()


def test_log_probabilities_of_another_reference_are_refused(tmp_path: Path) -> None:
    """In the first, the middle or the last row, for a file that does not match its key. The error names both numbers."""
    model = lm.load(write_model(tmp_path / "llama", "llama"))
    pairs = [Pair(prompt, *responses) for prompt, responses in random_groups(9, 2, seed=4)]
    path = tmp_path / "train.parquet"
    logps: Any = all_pair_logps(model, pairs, 100, "")
    rows.check_ref_logps(logps, model, pairs, path, 1e-3)
    for row, side in ((0, "rejected"), (4, "chosen"), (8, "chosen")):
        right = getattr(logps, side).logps
        wrong = right.index_add(0, torch.tensor([row]), torch.tensor([0.5]))
        stale = logps._replace(**{side: getattr(logps, side)._replace(logps=wrong)})
        with pytest.raises(
            DataError, match=rf"train.parquet: row {row}: {side}_logps: .*; run ref_logps again"
        ) as error:
            rows.check_ref_logps(stale, model, pairs, path, 1e-3)
        numbers = [float(number) for number in re.findall(r"-\d+\.\d{4}", str(error.value))]
        assert numbers == pytest.approx([float(values[row]) for values in (wrong, right)], abs=1e-3)


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


# Unpaired data, from the file to the metrics

WORDS = ["</s>", "<s>", "<unk>", "good", "bad", "Is", "it", *map(str, range(40))]


def write_tokenizer(folder: Path) -> None:
    """One token per word. All ids are below the tiny models' 64; 1 is the BOS, as in their config."""
    tokenizer = Tokenizer(tokenizer_models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')


FORMAT = format_settings(max_prompt_tokens=16, max_response_tokens=6, max_left_out=0.0, test_fraction=0.3)


@pytest.fixture(scope="module")
def unpaired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project up to ref_logps: 40 prompts; desirable responses say "good", others "bad"; prompt 3 has one of each."""
    folder = tmp_path_factory.mktemp("unpaired")
    raw = folder / "raw"
    raw.mkdir()
    labels = [(i, i % 3 == 0) for i in range(40)] + [(3, False)]
    lines = [
        {"prompt": f"Is it {i} ?", "completion": f"{'good' if label else 'bad'} {i}", "label": label}
        for i, label in labels
    ]
    (raw / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_tracking(patch, folder / "checkpoints")
        format_pairs.PAIRS.parent.mkdir(parents=True)
        write_pairs(format_pairs.PAIRS, read_pairs(raw, "unpaired"))
        write_tokenizer(write_model(sft_ref.BASE, "llama"))
        format_pairs.main(FORMAT)
        sft_ref.main(
            SftRef(
                adapter=lora(),
                training=training(SupervisedTraining, learning_rate=1e-3),
                gradient_checkpointing=False,
                shard="none",
                load_dtype="float32",
                save_dtype="float32",
                seed=0,
            )
        )
        ref_logps.main(RefLogps(dtype="float32", tokens_per_batch=100, shard="none"))
    return folder


@pytest.fixture
def unpaired_project(unpaired: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the unpaired project as the working directory."""
    shutil.copytree(unpaired, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_every_response_is_in_one_split_and_scored_once(unpaired: Path) -> None:
    frames = {split: pd.read_parquet(unpaired / dpo_text.PAIRS / f"{split}.parquet") for split in SPLITS}
    assert sum(map(len, frames.values())) == 41
    homes = [{split for split, frame in frames.items() if f" {i} " in " ".join(frame["prompt"])} for i in range(40)]
    assert all(len(home) == 1 for home in homes)  # prompt 3 included
    for split in ("train", "val"):
        frame = frames[split]
        logps = pd.read_parquet(unpaired / dpo_text.REF_LOGPS / f"{split}.parquet")
        assert ((logps["chosen_logps"] < 0) == frame["chosen"].notna()).all()
        assert ((logps["rejected_logps"] < 0) == frame["rejected"].notna()).all()
    assert all((frame["chosen"].isna() != frame["rejected"].isna()).all() for frame in frames.values())


def check_tokens(tokens: pd.DataFrame, table: pd.DataFrame, test: pd.DataFrame) -> None:
    """Asserts that the table has all scored tokens of all responses, and that their log-ratios sum to the response's."""
    by_response = {(row["id"], row["side"]): row for row in tokens.to_dict("records")}
    assert len(by_response) == len(tokens) == test["chosen"].notna().sum() + test["rejected"].notna().sum()
    assert by_response
    for (name, side), row in by_response.items():
        (scores,) = table[table["id"] == name].to_dict("records")
        (pair,) = test[test["id"] == name].to_dict("records")
        ids = pair[f"{side}_ids"].tolist()
        assert row["tokens"].tolist() == (ids[:-1] if pair[f"{side}_truncated"] else ids)
        ratio = scores[f"policy_{side}_logps"] - scores[f"ref_{side}_logps"]
        assert row["logratios"].sum() == pytest.approx(ratio, abs=1e-4)
        assert abs(ratio) > 0.01
        words = "".join(row["texts"]).replace("</s>", "").split()
        assert "".join(words) == "".join(pair[side].split())  # the tiny vocabulary has words without their spaces


@pytest.mark.slow
@pytest.mark.usefixtures("unpaired_project")
@pytest.mark.parametrize("loss", ["kto", slow("bco"), slow("apo_zero")])
def test_dpo_learns_from_unpaired_responses_and_evaluates_them(
    loss: Any, root: Path, histories: list[tuple[History, nn.Module]], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(loss)
    ((history, _),) = histories
    assert history.train[0]["kl"] == pytest.approx(0, abs=1e-6)  # the policy starts at its reference
    assert history.validation[-1]["loss"] < history.validation[0]["loss"]
    for name, target in (("misconceptions.csv", "truthfulqa"), ("pronouns.jsonl", "winogrande")):
        folder = Path("data/raw/evals") / target
        folder.mkdir(parents=True)
        shutil.copy(root / "evals" / name, folder)
    config = EvaluateText(max_eval_rows=2, tokens_per_batch=200, shard="none")
    monkeypatch.setattr(choices, "PRIMER", "Q: Who?\nA: She.")  # the tiny model's window is small
    ref_evals.main(FORMAT, config)
    for path in select_policy.RESULTS:
        write_json(path, None)  # no rounds
    select_policy.main()
    health_text.main(dpo_settings(), Health(kl_budget=1000.0, fail_on=[]))
    evaluate_text.main(0.5, loss, OPTIONS, FORMAT, config)

    control_text.main(0, dpo_settings(), ControlText(train=True, learning_rate=1e-2))
    sampling = answer_settings()
    ref_answers.main(FORMAT, sampling)
    answer_text.main(FORMAT, sampling)
    answers = pd.read_parquet(answer_text.ANSWERS)
    distinct = pd.read_parquet(dpo_text.PAIRS / "test.parquet")["prompt_ids"].map(tuple).nunique()
    assert answers["id"].nunique() == answers["prompt_ids"].map(tuple).nunique() == distinct
    assert len(answers) == 6 * distinct  # three models, two decodings
    assert read_json(answer_text.STATISTICS)["n_prompts"] == distinct
    judge_text.main(
        0.5, loss, OPTIONS, JudgeText(judge=ImplicitJudge(kind="implicit"), tokens_per_batch=200, shard="none")
    )
    judged = pd.read_parquet(judge_text.VERDICTS)
    keys = judged.loc[judged["against"] == "reference", ["id", "decoding"]]
    assert set(map(tuple, keys.to_numpy())) == set(map(tuple, answers[["id", "decoding"]].to_numpy()))
    assert len(keys) == 2 * distinct
    rates = read_json(judge_text.WIN_RATE)["implicit"]
    assert rates["sampled"]["n"] == rates["control"]["sampled"]["n"] == distinct
    assert len(judged) == 2 * len(keys)

    test = pd.read_parquet(dpo_text.PAIRS / "test.parquet")
    heldout = read_json(evaluate_text.METRICS)["heldout"]
    n_chosen = int(test["chosen"].notna().sum())
    assert (heldout["n_chosen"], heldout["n_rejected"]) == (n_chosen, len(test) - n_chosen)
    assert heldout["n_rows"] == n_chosen
    assert heldout["rewards"]["accuracy"] > 0.9  # one word tells good from bad
    assert heldout["rewards"]["margin"] > 0
    assert [models["policy"]["n"] for models in read_json(evaluate_text.METRICS)["choices"].values()] == [2, 2]
    scored = pd.read_parquet(evaluate_text.ROWS)
    fillings = {"winogrande": 2, "winogrande_wrong": 2, "winogrande_sentence": 2}
    assert scored["set"].value_counts().to_dict() == {"heldout": n_chosen, "truthfulqa": 2, **fillings}
    of_policy = scored[scored["set"] == "heldout"]
    nats = -of_policy["policy_logps"].sum() / of_policy["n_tokens"].sum()
    assert nats == pytest.approx(heldout["policy"]["cross_entropy"])
    assert len(pd.read_parquet(evaluate_text.CHOICES)) == 3 * (2 + 2)  # models, rows
    table = pd.read_csv(evaluate_text.HELDOUT, dtype={"id": str})
    assert table["id"].tolist() == test["id"].tolist()
    check_tokens(pd.read_parquet(evaluate_text.TOKENS), table, test)
    assert table["reward_chosen"].isna().tolist() == test["chosen"].isna().tolist()
    assert table["reward_rejected"].isna().tolist() == test["rejected"].isna().tolist()


@pytest.mark.slow
@pytest.mark.usefixtures("unpaired_project")
def test_without_supervised_steps_the_base_is_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_tracking(monkeypatch, tmp_path / "checkpoints")
    none = training(SupervisedTraining, epochs=0)
    sft_ref.main(
        SftRef(
            adapter=lora(),
            training=none,
            gradient_checkpointing=False,
            shard="none",
            load_dtype="float32",
            save_dtype="float32",
            seed=0,
        )
    )
    base, reference = (load_file(folder / "model.safetensors") for folder in (sft_ref.BASE, sft_ref.REFERENCE))
    assert base.keys() == reference.keys()
    assert all(torch.equal(base[name], reference[name]) for name in base)
    run = read_histories(sft_ref.REFERENCE)
    assert (len(run.history), len(run.validation)) == (0, 1)
    assert has(run.history, run.validation, [Line("loss", "reference")])  # a single point, the loss of the base model


@pytest.mark.usefixtures("unpaired_project", "histories")
def test_a_loss_of_pairs_refuses_lone_responses() -> None:
    with pytest.raises(DataError, match=r"^data/pairs/train.parquet: .*'sigmoid' needs .* one of apo_zero, kto, bco$"):
        train("sigmoid")


# Metrics

GROUPS = [Group([1], ([2, 3, 4],)), Group([5, 6], ([7],))]


def test_cross_entropy_is_weighted_by_tokens() -> None:
    """Responses of 3 and 1 tokens; prompts do not count. In the second case, the mean over rows is (3 / 3 + 5 / 1) / 2 = 3."""
    for logps, nats in (([-6.0, -2.0], (6 + 2) / (3 + 1)), ([-3.0, -5.0], (3 + 5) / (3 + 1))):
        expected = {"cross_entropy": nats, "perplexity": pytest.approx(math.exp(nats))}
        assert evaluate.cross_entropy(np.array(logps), GROUPS) == expected
    assert evaluate.n_tokens(GROUPS) == 4


def test_set_metrics_and_their_table() -> None:
    logps = {"base": np.array([-8.0, -4.0]), "reference": np.array([-4.0, -4.0]), "policy": np.array([-2.0, -2.0])}
    metrics = {"winogrande": evaluate.set_metrics(logps, GROUPS)}
    assert (metrics["winogrande"]["n_rows"], metrics["winogrande"]["n_tokens"]) == (2, 4)
    table = evaluate.table(metrics)
    columns = ["set", "model", "cross_entropy", "perplexity", "n_tokens", "n_rows"]
    assert list(table.columns) == columns
    assert table["model"].tolist() == ["base", "reference", "policy"]
    assert table["cross_entropy"].tolist() == [(8 + 4) / 4, (4 + 4) / 4, (2 + 2) / 4]
    assert set(table["set"]) == {"winogrande"}


def responses_of(logps: list[float], ref_logps: list[float], present: list[float]) -> Response:
    """Held-out responses of one token each."""
    values = (torch.tensor(v, dtype=torch.float64) for v in (logps, ref_logps, [1.0] * len(logps), present))
    policy, reference, tokens, has = values
    return Response(policy, reference, tokens, present=has)


PAIRED = PairBatch(
    responses_of([-1.0, -3.0], [-3.0, -5.0], [1, 1]),
    responses_of([-4.0, -4.0], [-2.0, -6.0], [1, 1]),
)


def test_rewards_by_hand() -> None:
    """beta 0.5, the first pair of two."""
    table = evaluate.heldout_table(PAIRED, preference_of("sigmoid").rewards(PAIRED))
    assert table.iloc[0].to_dict() == {
        "reward_chosen": 0.5 * (-1 + 3),
        "reward_rejected": 0.5 * (-4 + 2),
        "margin": 0.5 * (-1 + 3) - 0.5 * (-4 + 2),
        "policy_chosen_logps": -1.0,
        "policy_rejected_logps": -4.0,
        "ref_chosen_logps": -3.0,
        "ref_rejected_logps": -2.0,
    }


def test_heldout_metrics_by_hand() -> None:
    rewards = preference_of("sigmoid").rewards(PAIRED)
    logps = evaluate.chosen_logps(PAIRED, np.array([-6.0, -6.0]))
    metrics = evaluate.heldout_metrics(PAIRED, rewards, np.ones(2), 0.25, logps, GROUPS)
    nats = [metrics[name]["cross_entropy"] for name in ("base", "reference", "policy")]
    assert nats == [(6 + 6) / 4, (3 + 5) / 4, (1 + 3) / 4]
    assert (metrics["n_pairs"], metrics["n_rows"], metrics["n_tokens"], metrics["kl"]) == (2, 2, 4, 0.25)
    # Chosen rewards 1 and 1, rejected rewards -1 and 1.
    means = [metrics["rewards"][key] for key in ("chosen", "rejected", "margin", "accuracy")]
    assert means == [(1 + 1) / 2, (-1 + 1) / 2, ((1 + 1) + (1 - 1)) / 2, (1 + 0) / 2]


def test_heldout_metrics_of_unpaired_rows_by_hand() -> None:
    """Desirable rewards 1 and 3, undesirable reward 1: of the two combinations one is a tie, one is ranked right.

    Absent responses, with log-probability 0 and one token, do not count.
    """
    batch = PairBatch(
        responses_of([-1.0, 0.0, -3.0], [-3.0, 0.0, -9.0], [1, 0, 1]),
        responses_of([0.0, -4.0, 0.0], [0.0, -6.0, 0.0], [0, 1, 0]),
    )
    rewards = preference_of("kto").rewards(batch)
    logps = evaluate.chosen_logps(batch, np.array([-6.0, -6.0]))
    metrics = evaluate.heldout_metrics(batch, rewards, np.ones(3), 0.25, logps, GROUPS)
    assert "n_pairs" not in metrics
    assert (metrics["n_chosen"], metrics["n_rejected"], metrics["n_rows"], metrics["n_tokens"]) == (2, 1, 2, 4)
    nats = [metrics[name]["cross_entropy"] for name in ("base", "reference", "policy")]
    assert nats == [(6 + 6) / 4, (3 + 9) / 4, (1 + 3) / 4]
    means = [metrics["rewards"][key] for key in ("chosen", "rejected", "margin", "accuracy")]
    assert means == [(1 + 3) / 2, 1 / 1, (1 + 3) / 2 - 1, (1 / 2 + 1) / 2]
    assert not {"log_loss", "brier", "calibration_error"} & set(metrics["rewards"])  # defined for pairs only
    table = evaluate.heldout_table(batch, rewards)
    assert table["reward_chosen"].isna().tolist() == [False, True, False]
    assert table["reward_rejected"].isna().tolist() == [True, False, True]
    assert table["margin"].isna().all()
    assert table.filter(like="_logps").isna().sum().tolist() == [1, 2, 1, 2]


def test_differences_of_models_are_paired_and_per_token() -> None:
    """Rows of 2 and 4 tokens. In each, the policy needs 1 nat less than the reference, so 2 in 6 tokens.

    With so few rows, the interval is Student's. Both rows are 1/3 nat away from what 1/3 per token gives, a standard error of
    sqrt(2 (1/3)^2 / (2 * 1)) / 3 = 1/9 per token. The t quantile of one degree of freedom is tan(0.475 pi).
    """
    groups = [Group([5], ([1, 2],)), Group([5], ([1, 2, 3, 4],))]
    logps = {"base": np.array([-8.0, -9.0]), "reference": np.array([-4.0, -6.0]), "policy": np.array([-3.0, -5.0])}
    differences = evaluate.set_metrics(logps, groups)["differences"]
    assert differences["policy_reference"] == pytest.approx(
        {
            "difference": -(1 + 1) / (2 + 4),
            "difference_low": -1 / 3 - math.tan(0.475 * math.pi) / 9,
            "difference_high": -1 / 3 + math.tan(0.475 * math.pi) / 9,
        }
    )
    assert differences["policy_base"]["difference"] == pytest.approx(-((8 - 3) + (9 - 5)) / (2 + 4))
    assert differences["reference_base"]["difference"] == pytest.approx(-((8 - 4) + (9 - 6)) / (2 + 4))
    table = evaluate.rows_table("heldout", ["a", "b"], logps, groups)
    assert table.to_dict("records")[1] == {
        "set": "heldout",
        "row": "b",
        "n_tokens": 4,
        "base_logps": -9.0,
        "reference_logps": -6.0,
        "policy_logps": -5.0,
    }


def test_length_controlled_accuracy_by_hand() -> None:
    """Of ten pairs, six prefer the longer response (five ranked right), two the shorter (none), two are equally long (both).

    Longer and shorter count alike and together as 8 of 10 pairs, the equal ones as 2 of 10. A ranking by length alone gets
    one half of the eight.
    """
    margin = torch.tensor([1.0, 1, 1, 1, 1, -1, -1, -1, 1, 1])
    longer = torch.tensor([1.0, 2, 3, 1, 1, 1, -1, -5, 0, 0])
    metrics = reward_metrics(margin, torch.zeros(10), None, longer)
    assert metrics["accuracy"] == pytest.approx((5 + 0 + 2) / 10)
    assert metrics["length_controlled"] == pytest.approx(8 / 10 * (5 / 6 + 0 / 2) / 2 + 2 / 10 * 2 / 2)
    assert metrics["length_controlled_low"] < metrics["length_controlled"] < metrics["length_controlled_high"]
    by_length = reward_metrics(longer, torch.zeros(10), None, longer)
    assert by_length["length_controlled"] == pytest.approx(8 / 10 * (6 / 6 + 0 / 2) / 2 + 2 / 10 * 0 / 2)
    # With preference 0, the rejected response is the preferred one, and its length counts.
    swapped = reward_metrics(-margin, torch.zeros(10), torch.zeros(10), -longer)
    assert swapped["length_controlled"] == pytest.approx(metrics["length_controlled"])
    assert "length_controlled" not in reward_metrics(margin, torch.zeros(10), None, longer.abs())


def test_roc_area_and_welch_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(0.8, 1, 23).round(1), rng.normal(0, 2, 17).round(1)  # rounded, so that there are ties
    metrics = unpaired_reward_metrics(torch.tensor(chosen), torch.tensor(rejected))
    assert metrics["accuracy"] == pytest.approx(stats.mannwhitneyu(chosen, rejected).statistic / (23 * 17))
    interval = stats.ttest_ind(chosen, rejected, equal_var=False).confidence_interval(0.95)
    assert (metrics["margin_low"], metrics["margin_high"]) == pytest.approx(tuple(interval))
    assert metrics["margin"] == pytest.approx(chosen.mean() - rejected.mean())


def test_interval_of_a_roc_area_covers_the_true_area() -> None:
    """In 400 draws of 12 desirable and 30 undesirable rewards, it misses the true area about 20 times (sigma 4.4).

    It is mirrored for the mirrored area, has a width even if all rewards are ranked right, and stays within 0..1.
    """
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(1, 1, (400, 12)), rng.normal(0, 1, (400, 30))
    areas = (chosen[:, :, None] > rejected[:, None, :]).mean((1, 2))
    intervals = np.array([roc_area(float(area), 12, 30) for area in areas])
    true = stats.norm.cdf(1 / math.sqrt(2))
    missed = int(((intervals[:, 0] > true) | (intervals[:, 1] < true)).sum())
    assert 4 < missed < 36
    low, high = roc_area(0.7, 38, 40)
    assert roc_area(0.3, 40, 38) == pytest.approx((1 - high, 1 - low))
    assert roc_area(1.0, 5, 5)[0] < 0.7
    assert roc_area(1.0, 5, 5)[1] == 1.0
    assert roc_area(0.0, 5, 5)[0] == 0.0


def test_difference_of_single_or_equal_values_is_a_number() -> None:
    """scipy's interval would be NaN, which JSON does not have."""
    assert difference([1.0], [3.0]) == (1 - 3, 1 - 3)
    assert difference([1.0, 1.0], [3.0, 3.0]) == (1 - 3, 1 - 3)
    low, high = difference([1.0], [2.0, 3.0, 4.0])
    assert low < 1 - (2 + 3 + 4) / 3 < high


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
def test_heldout_log_probabilities_equal_a_naive_loop(tmp_path: Path, kind: str) -> None:
    """KL(policy || reference) = sum over the vocabulary of p (ln p - ln q), at every scored position of both responses."""
    policy = with_lora(write_model(tmp_path / kind, kind)).eval()
    disturb(policy)
    pairs = [Pair(prompt, *responses) for prompt, responses in random_groups(7, 2, seed=4)]
    models = lm.ReferenceAndPolicy(trainable.untrained(policy), policy)
    batch, kl, logratios, of_responses = evaluate.compare_heldout(models, pairs, max_tokens=40)

    logps: dict[str, list[float]] = {"logps": [], "ref_logps": []}
    kls: list[float] = []
    ratios: list[list[float]] = []
    with torch.no_grad():
        for prompt, responses in (pair.group for pair in pairs):
            for response in responses:
                ids = torch.tensor([[*prompt, *response]])
                inputs = {"input_ids": ids, "segments": ((0, len(prompt), (len(response),)),)}
                p = policy(**inputs).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                with policy.disable_adapter():
                    q = policy(**inputs).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                for name, values in (("logps", p), ("ref_logps", q)):
                    logps[name].append(sum(float(row[token]) for row, token in zip(values, response, strict=True)))
                kls += (p.exp() * (p - q)).sum(-1).tolist()
                ratios.append([float(a[token] - b[token]) for a, b, token in zip(p, q, response, strict=True)])

    assert kl == pytest.approx(sum(kls) / len(kls), rel=1e-4)
    assert kl > 0.01
    for name, values in logps.items():
        assert getattr(batch.chosen, name).tolist() == pytest.approx(values[0::2], abs=1e-4)
        assert getattr(batch.rejected, name).tolist() == pytest.approx(values[1::2], abs=1e-4)
    assert [len(of_response) for of_response in logratios] == [len(of_response) for of_response in ratios]
    np.testing.assert_allclose(np.concatenate(logratios), np.concatenate(ratios), atol=1e-4)
    assert [len(of_response) for of_response in of_responses] == [len(of_response) for of_response in ratios]
    np.testing.assert_allclose(np.concatenate(of_responses), kls, atol=1e-4)
    # One response of each pair alone: the same numbers, and zeros for absent responses.
    lone = [Pair(p, c if i % 2 else None, None if i % 2 else r) for i, (p, c, r, _) in enumerate(pairs)]
    halves, _, of_lone, _ = evaluate.compare_heldout(models, lone, max_tokens=40)
    assert [len(values) for values in of_lone] == [len(logratios[2 * i + 1 - i % 2]) for i in range(len(pairs))]
    for i in range(len(pairs)):
        present, absent = (halves.chosen, halves.rejected) if i % 2 else (halves.rejected, halves.chosen)
        expected = batch.chosen if i % 2 else batch.rejected
        assert float(present.logps[i]) == pytest.approx(float(expected.logps[i]), abs=1e-4)
        assert present.present is not None
        assert absent.present is not None
        assert (absent.logps[i], present.present[i], absent.present[i]) == (0, 1, 0)


@pytest.mark.slow
def test_log_probabilities_are_saved_by_model_and_set(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "llama", "llama")
    policy = with_lora(folder).eval()
    disturb(policy)
    sets = {"heldout": GROUPS, "a set": GROUPS[:1]}
    for role, model in (("reference", trainable.untrained(policy)), ("policy", policy)):
        eval_logps.to_frame(eval_logps.compute_logps(model, sets, 100, role)).to_parquet(tmp_path / role)
    reference, tuned = (eval_logps.read_logps(tmp_path / role, sets) for role in ("reference", "policy"))
    assert np.array_equal(reference["heldout"], group_logps(lm.load(folder), GROUPS, 100, "test"))
    assert np.array_equal(tuned["heldout"], group_logps(policy, GROUPS, 100, "test"))
    assert np.array_equal(tuned["a set"], tuned["heldout"][:1])
    assert np.abs(tuned["heldout"] - reference["heldout"]).max() > 0.01
    with pytest.raises(DataError, match=r"reference: 1 log-probabilities of a set, expected 2; run ref_evals again$"):
        eval_logps.read_logps(tmp_path / "reference", {"a set": GROUPS})
    with pytest.raises(DataError, match=r"reference: 0 log-probabilities of another, expected 1; run ref_evals again$"):
        eval_logps.read_logps(tmp_path / "reference", {"another": GROUPS[:1]})
