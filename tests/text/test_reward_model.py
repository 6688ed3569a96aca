"""The reward model: its loss by hand, rewards and gradients against transformers, its figures, resuming, and when it judges."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from judging import contests_of
from scipy.stats import pearsonr
from tasks import without_tracking
from text_project import frame_of, pairs_of, write_text_project
from tiny_models import ADAPTERS, disturb, lora, random_groups, training, write_both, write_model
from transformers import AutoModelForSequenceClassification

from prefdag.check_params import check_params
from prefdag.config.reward_model import RewardModel
from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.runtime.artifacts import read_json, sha256, write_json
from prefdag.runtime.yaml import read_yaml
from prefdag.stats.reward_model import calibration_bins, figures
from prefdag.stats.rewards import calibration_error
from prefdag.text import reward_model as rm
from prefdag.text.evaluation import trained_judge
from prefdag.text.evaluation.chance import HELDOUT, check_beats_chance
from prefdag.text.rewards import load, reward
from prefdag.text.scoring.packing import Group
from prefdag.train.checkpoint import Checkpoints
from stages import reward_model


def settings(**changes: Any) -> RewardModel:
    adapter = changes.pop("adapter", lora(rank=4, alpha=8))
    return RewardModel(train=True, adapter=adapter, training=training(**changes), gradient_checkpointing=False, seed=0)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The loss


def test_the_loss_by_hand() -> None:
    """Margins 1, 1 and 0: ln(1 + 1/e) for p = 1; for p = 1/4, a quarter of that and 3/4 of ln(1 + e); ln 2."""
    outputs = {"chosen": tensor(1, 3, 2), "rejected": tensor(0, 2, 2), "preference": tensor(1, 0.25, 1)}
    losses, metrics = rm.bradley_terry(outputs)
    small, large = math.log(1 + math.exp(-1)), math.log(1 + math.e)
    assert losses.tolist() == pytest.approx([small, small / 4 + large * 3 / 4, math.log(2)])
    assert metrics["rewards/accuracy"].tolist() == [1, 1, 0]
    assert metrics["rewards/margin"].tolist() == [1, 1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rewards_and_gradients_are_those_of_transformers(kind: str, adapter: str, tmp_path: Path) -> None:
    """The packed rows of training against what `save` wrote, row by row in a sequence classifier of transformers."""
    folder = write_both(tmp_path)[kind]
    network = rm.new_reward_network(folder, settings(adapter=ADAPTERS[adapter]))
    disturb(network)
    (tmp_path / "saved").mkdir()
    rm.save(network, tmp_path / "saved", folder)
    groups = random_groups(5)
    twin: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert twin.config.num_labels == 1
    each = [
        twin(input_ids=torch.tensor([[*group.prompt, *response]])).logits[0, 0]
        for group in groups
        for response in group.responses
    ]
    found = rm.rewards(network, groups)
    assert found.tolist() == pytest.approx([value.item() for value in each], abs=1e-3)
    assert max(map(abs, found.tolist())) > 0.1  # rewards that differ
    loaded = load(tmp_path / "saved")
    assert reward(loaded, groups[0].prompt, groups[0].responses[0]) == pytest.approx(each[0].item(), abs=1e-5)
    if adapter == "full":
        F.softplus(-(found[::2] - found[1::2])).sum().backward()
        stacked = torch.stack(each)
        F.softplus(-(stacked[::2] - stacked[1::2])).sum().backward()
        own = {name.removeprefix("policy."): p.grad for name, p in network.named_parameters() if p.grad is not None}
        own["score.weight"] = own.pop("head.weight")
        theirs = {name: p.grad for name, p in twin.named_parameters()}
        assert own.keys() == theirs.keys()
        for name, gradient in theirs.items():
            torch.testing.assert_close(own[name], gradient, rtol=2e-3, atol=2e-4, msg=name)


@pytest.mark.slow
def test_a_response_that_ends_with_the_padding_token_is_read_to_its_end(tmp_path: Path) -> None:
    """As of SmolLM2, whose padding token ends a response: transformers would take the last token before it."""
    folder = write_model(tmp_path / "llama", "llama", pad_token_id=0)
    network = rm.new_reward_network(folder, settings())
    disturb(network)
    rm.save(network, tmp_path / "saved", folder)
    model = load(tmp_path / "saved")
    for group in (Group([5, 6], ([7, 0],)), Group([5, 6], ([7],))):
        assert reward(model, group.prompt, group.responses[0]) == pytest.approx(
            rm.rewards(network, [group]).item(), abs=1e-3
        )


def test_the_first_loss_is_ln_2(tmp_path: Path) -> None:
    network = rm.new_reward_network(write_both(tmp_path)["llama"], settings())
    task = rm.reward_task(pairs_of(frame_of(4)))
    losses, _ = task.loss(task.forward(network, range(4), None))
    assert losses.tolist() == pytest.approx([math.log(2)] * 4)


# The figures


def test_figures_by_hand() -> None:
    """Four pairs: margins 2, -1, 1, 0, so two ranked right; the longer response is preferred in one, the shorter one in two."""
    chosen, rejected = tensor(2, 0, 1, 0), tensor(0, 1, 0, 0)
    tokens = (torch.tensor([5, 2, 3, 4]), torch.tensor([2, 5, 5, 4]))
    found = figures(chosen, rejected, tensor(1, 1, 1, 1), tokens)
    assert (found["n"], found["accuracy"]) == (4, 0.5)
    length = found["length"]
    assert {name: (length[name]["n"], length[name]["accuracy"]) for name in length if "correlation" not in name} == {
        "chosen_longer": (1, 1.0),
        "chosen_shorter": (2, 0.5),
        "same_length": (1, 0.0),
        "longer_wins": (4, (1 + 0 + 0 + 0.5) / 4),
    }
    assert found["length_controlled"] == pytest.approx(3 / 4 * (1 + 0.5) / 2 + 1 / 4 * 0)
    expected = pearsonr([2, 0, 1, 0, 0, 1, 0, 0], [5, 2, 3, 4, 2, 5, 5, 4]).statistic
    assert length["correlation"] == pytest.approx(expected)
    assert length["correlation_low"] < expected < length["correlation_high"]


def test_a_label_that_prefers_the_second_response_swaps_the_pair() -> None:
    one = figures(tensor(1, 0), tensor(0, 2), tensor(1, 0), (torch.tensor([3, 1]), torch.tensor([1, 2])))
    other = figures(tensor(1, 2), tensor(0, 0), tensor(1, 1), (torch.tensor([3, 2]), torch.tensor([1, 1])))
    for name in ("chosen_longer", "longer_wins"):
        assert one["length"][name] == other["length"][name]
    assert one["accuracy"] == other["accuracy"] == 1.0


def test_the_bins_give_the_calibration_error() -> None:
    generator = torch.Generator().manual_seed(0)
    margin = torch.randn(200, generator=generator, dtype=torch.float64) * 2
    preference = torch.rand(200, generator=generator, dtype=torch.float64)
    bins = calibration_bins(margin, preference)
    assert sum(each["n"] for each in bins) == 200
    error = sum(each["n"] / 200 * abs(each["predicted"] - each["observed"]) for each in bins)
    assert error == pytest.approx(calibration_error(margin, preference))


# The stage


def learnable(n: int, seed: int, *, shuffled: bool = False) -> pd.DataFrame:
    """Pairs whose chosen response ends with token 11, the rejected one with 12; if `shuffled`, in half of the rows."""
    frame = frame_of(n, seed)
    swap = np.random.default_rng(seed).random(n) < 0.5 if shuffled else np.zeros(n, bool)
    for side, (token, other) in {"chosen": (11, 12), "rejected": (12, 11)}.items():
        frame[f"{side}_ids"] = [
            np.array([*ids[:-1], other if swapped else token, 0])
            for ids, swapped in zip(frame[f"{side}_ids"], swap, strict=True)
        ]
        frame[f"{side}_truncated"] = False
    return frame


def write_project(folder: Path, *, shuffled: bool = False) -> None:
    (folder / "models").mkdir()
    write_text_project(folder, "llama")
    for seed, (split, n) in enumerate({"train": 32, "val": 8, "test": 40}.items()):
        learnable(n, seed, shuffled=shuffled).to_parquet(reward_model.PAIRS / f"{split}.parquet")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)
    without_tracking(monkeypatch, tmp_path / "checkpoints")
    return tmp_path


@pytest.mark.slow
def test_a_model_that_learned_its_pairs_judges(project: Path) -> None:
    reward_model.main(settings(epochs=4))
    found = read_json(reward_model.FIGURES)
    assert found == read_json(reward_model.MODEL / HELDOUT)
    assert found["n"] == 40
    assert found["accuracy_low"] > 0.8
    history = pd.read_csv(reward_model.MODEL / "validation.csv")
    assert history["loss"].iloc[0] == pytest.approx(math.log(2), abs=1e-5)
    assert history["rewards/accuracy"].iloc[-1] > 0.8
    pairs = contests_of([("a", "b"), ("ab", "a"), ("b", "b")])
    verdicts = trained_judge.verdicts(pairs, reward_model.MODEL, "judge_text.judge")
    model = load(reward_model.MODEL)
    for side in ("reference", "policy"):
        expected = [reward(model, *row) for row in zip(pairs["prompt_ids"], pairs[f"ids_{side}"], strict=True)]
        assert verdicts[f"reward_{side}"].tolist() == expected
    assert verdicts["outcome"].iloc[2] == "tie"


@pytest.mark.slow
def test_a_model_that_learned_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path, shuffled=True)
    without_tracking(monkeypatch, tmp_path / "checkpoints")
    reward_model.main(settings(epochs=4))
    found = read_json(reward_model.FIGURES)
    assert found["accuracy_low"] <= 0.5 <= found["accuracy_high"]
    line = (
        rf"^params.yaml: judge_text.judge: the trained reward model is not shown to beat chance: it ranks "
        rf"{found['accuracy']:.2f} of 40 held-out pairs right \(95% interval {found['accuracy_low']:.2f} to "
    )
    with pytest.raises(ParamsError, match=line) as caught:
        trained_judge.verdicts(contests_of([("a", "b")]), reward_model.MODEL, "judge_text.judge")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_an_interval_that_ends_at_one_half_is_refused() -> None:
    figures = {"accuracy": 0.7, "accuracy_low": 0.5, "accuracy_high": 0.9, "n": 20}
    with pytest.raises(ParamsError, match="not shown to beat chance"):
        check_beats_chance(figures, "rounds.judge")
    check_beats_chance({**figures, "accuracy_low": 0.5001}, "rounds.judge")
    with pytest.raises(ParamsError, match=r"^params.yaml: rounds.judge.source: no reward model was trained; set "):
        check_beats_chance(None, "rounds.judge")


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_bytes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(epochs=2, checkpoint_every=3)  # 16 steps
    reward_model.main(config)
    once = sha256(reward_model.MODEL)
    saved = Checkpoints.save

    def killed(self: Checkpoints, step: int, *rest: Any) -> None:
        saved(self, step, *rest)
        if step == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        reward_model.main(config)
    monkeypatch.setattr(Checkpoints, "save", saved)
    steps: list[int] = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *rest: steps.append(step))
    reward_model.main(config)
    assert steps == [12, 15]  # not from the start
    assert sha256(reward_model.MODEL) == once


@pytest.mark.slow
def test_a_killed_evaluation_trains_only_the_last_steps_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    heldout = rm.heldout
    monkeypatch.setattr(rm, "heldout", killed)
    with pytest.raises(KeyboardInterrupt):
        reward_model.main(settings(epochs=2, checkpoint_every=3))
    assert not reward_model.MODEL.exists()
    steps: list[int] = []
    monkeypatch.setattr(rm, "heldout", heldout)
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *rest: steps.append(step))
    reward_model.main(settings(epochs=2, checkpoint_every=3))
    assert steps == []  # after the checkpoint at step 15, one step was left


def test_rows_with_one_response_teach_nothing(project: Path) -> None:
    frame = learnable(4, 0)
    frame["rejected_ids"] = [np.array([], dtype=np.int64)] * 4
    frame.to_parquet(reward_model.PAIRS / "train.parquet")
    with pytest.raises(DataError, match=r"^data/pairs/train.parquet: no pair with two responses to learn from; set"):
        reward_model.main(settings())


def test_a_row_beyond_the_window_is_named(project: Path) -> None:
    frame = learnable(4, 0)
    frame.at[2, "chosen_ids"] = np.array([*[5] * 130, 0])
    frame.to_parquet(reward_model.PAIRS / "train.parquet")
    with pytest.raises(DataError, match=r"^data/pairs/train.parquet: 0-2: 13\d tokens; .* up to 127"):
        reward_model.main(settings())


OFF = """
import json, sys
from pathlib import Path
from pydantic import TypeAdapter
from prefdag.runtime.yaml import read_yaml
from stages import reward_model, reward_model_image
for stage in (reward_model, reward_model_image):
    tree = read_yaml(Path(sys.argv[1]))
    stage.main(**stage.main.sections(tree))
print(sorted({"torch", "scipy", "pandas", "transformers"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_off_costs_no_import_and_writes_nothing_but_null(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(root))
    command = [sys.executable, "-c", OFF, str(root / "params.yaml")]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n"
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    expected = ["models/reward_model/heldout.json", "reports/image/reward_model.json", "reports/text/reward_model.json"]
    assert files == expected
    assert all(json.loads((tmp_path / file).read_text()) is None for file in files)


# In params.yaml


def with_trained_judge(root: Path, place: str) -> dict[str, Any]:
    tree = read_yaml(root / "params.yaml")
    judge = {"kind": "reward_model", "source": "trained"}
    if place == "judge_text.judge":
        tree["judge_text"]["judge"] = judge
    else:
        tree["rounds"]["count"] = 1
        tree["rounds"][place.removeprefix("rounds.")] = judge
    return tree


@pytest.mark.parametrize("place", ["judge_text.judge", "rounds.judge", "rounds.stopping_judge"])
def test_a_judge_that_nothing_trains_is_refused(place: str, root: Path) -> None:
    tree = with_trained_judge(root, place)
    with pytest.raises(ParamsError, match=rf"^params.yaml: {place}.source: trained, but reward_model.train is false; "):
        check_params(tree, Path("params.yaml"))
    tree["reward_model"]["train"] = True
    check_params(tree, Path("params.yaml"))


@pytest.mark.slow
def test_rounds_do_not_start_with_a_judge_at_chance(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages import plan_rounds

    monkeypatch.chdir(tmp_path)
    sections = plan_rounds.main.sections(with_trained_judge(root, "rounds.judge"))
    write_json(plan_rounds.REWARD_MODEL, {"accuracy": 0.57, "accuracy_low": 0.45, "accuracy_high": 0.67, "n": 74})
    with pytest.raises(ParamsError, match=r"^params.yaml: rounds.judge: .* it ranks 0.57 of 74 held-out pairs right"):
        plan_rounds.main(**sections)
    assert not plan_rounds.PLAN.exists()
    write_json(plan_rounds.REWARD_MODEL, {"accuracy": 0.67, "accuracy_low": 0.55, "accuracy_high": 0.77, "n": 74})
    plan_rounds.main(**sections)
    assert read_json(plan_rounds.PLAN / "1" / "judge.json")["judge"] == {"kind": "reward_model", "source": "trained"}
