"""Verdicts by rewards, and the win rate: by hand, against the models, and with invalid reward models."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from clones import set_params
from judging import contests_of, write_two_contests
from tasks import preference_of
from tiny_models import disturb, with_lora, write_model
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification

from prefdag.config.sources import PathSource
from prefdag.lifecycle.errors import DataError, ParamsError, PrefdagError, SourceError
from prefdag.runtime.artifacts import sha256
from prefdag.stats.intervals import paired_difference
from prefdag.text import model as lm
from prefdag.text.evaluation import judge
from prefdag.text.fetched import fetched
from prefdag.text.scoring.logps import group_logps
from prefdag.text.scoring.packing import Group

TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
WORDS = ["</s>", "<unk>", "user", "assistant", "Say", "good", "bad", "p0", "p1", "p2", "a", "b"]


def verdicts_of(outcomes: list[str], decoding: str = "greedy") -> pd.DataFrame:
    keys = {"id": [f"p{i}" for i in range(len(outcomes))], "decoding": decoding}
    return pd.DataFrame({**keys, "outcome": outcomes})


# The win rate


def test_win_rate_by_hand() -> None:
    """Five wins, two ties, one loss, one unread. The interval is (1 + d) / 2 for the ends d of Tango's, for 5 and 1 of 8."""
    outcomes = ["win"] * 5 + ["tie", "tie", "loss", "unread"]
    pairs = contests_of([("a", "ab")] * 4 + [("ab", "a")] * 3 + [("a", "b")] * 2)
    rates = judge.win_rates(pairs, verdicts_of(outcomes))["greedy"]
    counts = {name: rates[name] for name in ("n", "wins", "ties", "losses", "unread")}
    assert counts == {"n": 8, "wins": 5, "ties": 2, "losses": 1, "unread": 1}
    assert rates["win_rate"] == (5 + 2 / 2) / 8
    low, high = paired_difference(5, 1, 8)
    assert (rates["win_rate_low"], rates["win_rate_high"]) == ((1 + low) / 2, (1 + high) / 2)
    assert 0.4 < rates["win_rate_low"] < 0.75 < rates["win_rate_high"] < 1
    # The policy's answer is longer in four (all won), shorter in three (1, 1/2, 1/2), equally long in one (lost).
    assert rates["length_controlled"] == pytest.approx(7 / 8 * (4 / 4 + (1 + 1 / 2 + 1 / 2) / 3) / 2 + 1 / 8 * 0)


def test_swapping_policy_and_reference_mirrors_the_win_rate() -> None:
    swap = {"win": "loss", "loss": "win", "tie": "tie"}
    outcomes = ["win", "win", "tie", "loss", "win"]
    texts = [("a", "ab"), ("ab", "a"), ("a", "b"), ("a", "abc"), ("abc", "a")]
    rates = judge.win_rates(contests_of(texts), verdicts_of(outcomes))["greedy"]
    swapped = judge.win_rates(contests_of([t[::-1] for t in texts]), verdicts_of([swap[o] for o in outcomes]))["greedy"]
    for name, mirror in (("win_rate", "win_rate"), ("win_rate_low", "win_rate_high"), ("length_controlled",) * 2):
        assert rates[name] == pytest.approx(1 - swapped[mirror])


def test_ten_equal_outcomes_leave_the_win_rate_uncertain() -> None:
    for outcome, ends in (("win", (0.6, 1.0)), ("loss", (0.0, 0.4)), ("tie", (0.3, 0.7))):
        rates = judge.win_rates(contests_of([("a", "b")] * 10), verdicts_of([outcome] * 10))["greedy"]
        assert ends[0] <= rates["win_rate_low"] < rates["win_rate_high"] <= ends[1]
        assert "length_controlled" not in rates


def test_decodings_are_counted_separately() -> None:
    pairs = pd.concat([contests_of([("a", "b")] * 2), contests_of([("a", "b")] * 3, "sampled")])
    verdicts = pd.concat([verdicts_of(["win", "win"]), verdicts_of(["loss", "loss", "tie"], "sampled")])
    rates = judge.win_rates(pairs, verdicts)
    assert {name: (rate["n"], rate["win_rate"]) for name, rate in rates.items()} == {
        "greedy": (2, 1.0),
        "sampled": (3, pytest.approx((0 + 0 + 1 / 2) / 3)),
    }


def test_a_judge_without_a_readable_verdict_is_an_error() -> None:
    with pytest.raises(PrefdagError, match=r"none of 2 verdicts on greedy answers can be read; choose another model"):
        judge.win_rates(contests_of([("a", "b")] * 2), verdicts_of(["unread"] * 2))


def test_the_higher_reward_wins_and_the_same_answer_ties() -> None:
    pairs = contests_of([("a", "b"), ("a", "b"), ("a", "b"), ("a", "a")])
    verdicts = judge.by_rewards(pairs, np.array([0.0, 1.0, 2.0, 1.0]), np.array([0.5, -1.0, 2.0, 1.0 + 1e-7]))
    assert verdicts["outcome"].tolist() == ["win", "loss", "tie", "tie"]
    assert verdicts["id"].tolist() == ["p0", "p1", "p2", "p3"]


# Implicit rewards


@pytest.mark.slow
def test_implicit_rewards_are_beta_times_the_log_ratio(tmp_path: Path) -> None:
    """Against `group_logps`; a mean over tokens if the loss takes one."""
    folder = write_model(tmp_path / "llama", "llama")
    policy = with_lora(folder)
    disturb(policy)
    both = lm.ReferenceAndPolicy(lm.Unadapted(policy), policy)
    pairs = contests_of([("ab", "c"), ("d", "efg"), ("hh", "hh")])
    verdicts = judge.implicit(pairs, both, preference_of("sigmoid", beta=0.5), 40)
    mean = judge.implicit(pairs, both, preference_of("sigmoid", beta=0.5, reduction="mean"), 40)
    for side in ("reference", "policy"):
        groups = [
            Group(list(prompt), (list(ids),))
            for prompt, ids in zip(pairs["prompt_ids"], pairs[f"ids_{side}"], strict=True)
        ]
        ratio = 0.5 * (group_logps(policy, groups, 100, "") - group_logps(both.reference, groups, 100, ""))
        assert verdicts[f"reward_{side}"].tolist() == pytest.approx(ratio.tolist(), abs=1e-5)
        lengths = pairs[f"ids_{side}"].map(len).to_numpy()
        assert mean[f"reward_{side}"].tolist() == pytest.approx((ratio / lengths).tolist(), abs=1e-5)
    higher = np.sign(verdicts["reward_policy"] - verdicts["reward_reference"])[:2]
    assert verdicts["outcome"].tolist() == [*({1.0: "win", -1.0: "loss"}[sign] for sign in higher), "tie"]


# A reward model


def write_reward_model(folder: Path, labels: int = 1, *, template: Any = TEMPLATE, positions: int = 64) -> Path:
    """A reward model that scores a dialogue by its last word: "good" 2, "bad" -1, everything else 0."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=positions,
        num_labels=labels,
    )
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()  # no attention: the last token's embedding goes straight to the head
        model.model.embed_tokens.weight.copy_(torch.eye(len(WORDS), 16))
        model.score.weight.zero_()
        model.score.weight[0, WORDS.index("good")] = 2 / math.sqrt(16)  # the norm of a unit vector of 16 is 4
        model.score.weight[0, WORDS.index("bad")] = -1 / math.sqrt(16)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plain = TEMPLATE.replace(" </s> ", " ")  # so that the last word is the answer's
    return write_reward_model(tmp_path / "reward", template=plain)


def test_a_reward_model_reads_the_dialogue_in_its_template(folder: Path) -> None:
    pairs = contests_of([("bad", "good"), ("a good", "a bad"), ("a", "b"), ("good", "good")])
    verdicts = judge.reward_model(pairs, folder)
    assert verdicts["outcome"].tolist() == ["win", "loss", "tie", "tie"]
    assert verdicts["reward_policy"].tolist() == pytest.approx([2, -1, 0, 2], abs=1e-4)
    assert verdicts["reward_reference"].tolist() == pytest.approx([-1, 2, 0, 2], abs=1e-4)


@pytest.mark.slow
def test_two_processes_share_the_contests_of_a_reward_model(
    folder: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They write the bytes of one process."""
    written = []
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_two_contests()
        shutil.copy(root / "params.yaml", ".")
        source = {"kind": "path", "path": str(folder), "sha256": sha256(folder)}
        set_params(Path(), {"judge_text.judge": {"kind": "reward_model", "source": source}})
        command = [sys.executable, *launcher, "-m", "stages.judge_text"]
        environment = {**os.environ, "PYTHONPATH": str(root), "DVC_ROOT": str(tmp_path / name), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300)
        written.append([Path(f"reports/text/{file}").read_bytes() for file in ("verdicts.parquet", "win_rate.json")])
    assert json.loads(written[0][1])["reward_model"]["greedy"]["n"] == 2
    assert written[0] == written[1]


@pytest.mark.slow
def test_folders_that_hold_no_reward_model_are_refused_in_one_line(tmp_path: Path) -> None:
    pairs = contests_of([("a", "b")])
    cases: dict[str, Any] = {
        "no trained score.weight": write_model(tmp_path / "causal", "llama"),  # its head would be drawn at random
        "has 3 labels; a reward model has one": write_reward_model(tmp_path / "three", labels=3),
        "the tokenizer has no default chat template": write_reward_model(tmp_path / "plain", template=None),
        "has no default chat template": write_reward_model(
            tmp_path / "named", template=[{"name": "rag", "template": TEMPLATE}]
        ),
        "no reward model in safetensors": tmp_path / "empty",
    }
    (tmp_path / "empty").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "causal" / name).write_bytes((tmp_path / "three" / name).read_bytes())
    pickled = write_reward_model(tmp_path / "pickled")
    torch.save({}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for message, where in {**cases, "no reward model in safetensors ": pickled}.items():
        with pytest.raises(ParamsError) as caught:
            judge.reward_model(pairs, where)
        assert str(caught.value).startswith("params.yaml: judge_text.judge.source: ")
        assert message.strip() in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_dialogue_beyond_the_window_is_named(tmp_path: Path) -> None:
    small = write_reward_model(tmp_path / "small", positions=8)
    with pytest.raises(
        DataError, match=r"pairs.parquet: p0: 9 tokens to judge, .* has 8 positions; choose another one"
    ):
        judge.reward_model(contests_of([("a a a", "b")]), small)


def test_a_source_is_fetched_once_and_checked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    source = PathSource(kind="path", path=str(folder), sha256=sha256(folder))
    assert sha256(fetched(source, "models", "key.source")) == source.sha256
    (folder / "config.json").write_text("{}")
    assert sha256(fetched(source, "models", "key.source")) == source.sha256  # not fetched again
    with pytest.raises(SourceError, match=r"^params.yaml: key.source: sha256 is "):
        fetched(source, "others", "key.source")
    assert not list((tmp_path / "project/.prefdag/others").iterdir())


def test_a_source_without_a_pin_is_fetched_each_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    source = PathSource(kind="path", path=str(folder), sha256=None)
    fetched(source, "models", "key.source")
    (folder / "config.json").write_text("{}")
    assert (fetched(source, "models", "key.source") / "config.json").read_text() == "{}"


def test_an_adapter_is_no_reward_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(
        ParamsError, match=r"^params.yaml: judge_text.judge.source: adapter_config.json: an adapter beside"
    ):
        judge.reward_model(contests_of([("a", "b")]), folder)
