"""Training on a dataframe: the same weights as the pipeline's stages, and mistakes in one line."""

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from format_settings import format_settings
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from tasks import NO_OPTIONS, without_tracking
from tiny_models import training, write_model, write_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from prefdag import dpo
from prefdag.config.adapter import Full, Lora
from prefdag.config.dpo_text import DpoText, TextReference
from prefdag.config.loss_options import LossOptions
from prefdag.config.ref_logps import RefLogps
from prefdag.lifecycle.errors import DataError, ParamsError, PrefdagError, SourceError
from prefdag.notebook import training as notebook
from prefdag.notebook.training import Trained
from prefdag.pairs.schema import read_pairs, write_pairs
from prefdag.tokenizer.tokenizer import ChatTokenizer
from stages import dpo_text, format_pairs, ref_logps

pytestmark = pytest.mark.slow

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
FRAME = pd.DataFrame(
    {
        "prompt": [f"say {word}" for word in WORDS],
        "chosen": [f"{word}{word}" for word in WORDS],
        "rejected": [f"not {word}" for word in WORDS],
    }
)
LENGTHS = {"max_prompt_tokens": 100, "max_response_tokens": 20}
SETTINGS = {"epochs": 2, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    folder = write_tokenizer(write_model(folder / "llama", "llama", bos_token_id=1, eos_token_id=2))
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    return folder


def train(model: Path, **options: Any) -> Trained:
    return dpo.train(FRAME, model, **{**LENGTHS, **SETTINGS, **options})


def trained_weights(result: Trained, folder: Path) -> dict[str, Tensor]:
    result.save(folder)
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance)


# The same as the pipeline


@pytest.fixture
def project(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pipeline's inputs for the rows of `FRAME`."""
    monkeypatch.chdir(tmp_path)
    for target in (format_pairs.MODEL, dpo_text.REFERENCE):
        shutil.copytree(model, target)
    raw = tmp_path / "data/raw/pairs"
    raw.mkdir(parents=True)
    FRAME.to_json(raw / "pairs.jsonl", orient="records", lines=True)
    format_pairs.PAIRS.parent.mkdir(parents=True)
    write_pairs(format_pairs.PAIRS, read_pairs(raw, "auto"))
    return tmp_path


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(("loss", "options"), [("sigmoid", {"label_smoothing": 0.1}), ("bco", {})])
def test_the_weights_are_those_of_the_pipelines_stages(
    kind: str,
    loss: Any,
    options: dict[str, float],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
) -> None:
    """The stages format the same rows, score them under the reference, and train with the same settings."""
    format_pairs.main(format_settings(template="chat", max_left_out=0.05, test_fraction=0.0, **LENGTHS))
    shutil.copyfile("data/pairs/val.parquet", "data/pairs/test.parquet")  # ref_logps scores every split
    ref_logps.main(RefLogps(dtype="float32", tokens_per_batch=4096, shard="none"))
    without_tracking(monkeypatch, project / "checkpoints")
    lora = Lora(kind="lora", rank=4, alpha=8, dropout=0.1, target_modules="auto", rslora=False, dora=False)
    config = DpoText(
        adapter=lora if kind == "lora" else Full(kind="full"),
        reference=TextReference(logps="cached", update="none", alpha=None, every=None),
        training=training(**SETTINGS, schedule="cosine", warmup_fraction=0.1, validate_every=2),
        gradient_checkpointing=False,
        shard="none",
        load_dtype="float32",
    )
    # With dropout a policy would not start at its reference.
    if isinstance(config.adapter, Lora):
        monkeypatch.setattr("prefdag.text.dpo_run.StartCheck.before_update", lambda *_: None)
    dpo_text.main(0.2, loss, 3, LossOptions(**{**NO_OPTIONS, **options}), {}, config)
    adapter = {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.1} if kind == "lora" else "full"
    ours = train(
        dpo_text.REFERENCE,
        loss=loss,
        beta=0.2,
        seed=3,
        adapter=adapter,
        val_fraction=0.2,
        validate_every=2,
        **options,
    )
    (file,) = dpo_text.POLICY.glob("*model.safetensors")
    assert_equal(trained_weights(ours, project / "notebook"), load_file(file))
    for name, table in (("history", ours.history), ("validation", ours.validation)):
        pd.testing.assert_frame_equal(table, pd.read_csv(dpo_text.POLICY / f"{name}.csv"), check_dtype=False)


def test_another_seed_gives_other_weights(model: Path, tmp_path: Path) -> None:
    first, again, other = (
        trained_weights(train(model, seed=seed), tmp_path / name) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert_equal(first, again)
    assert any((first[name] != other[name]).any() for name in first)


# The result


def test_the_policy_learns_generates_and_loads(model: Path, tmp_path: Path) -> None:
    result = train(model, epochs=6)
    assert list(result.history["step"]) == list(range(18))  # ten rows in three steps per epoch
    assert result.history["loss"].iloc[0] == pytest.approx(0.6931, abs=1e-4)
    assert result.history["rewards/accuracy"].iloc[-1] == 1.0
    assert result.validation.empty
    inputs = result.tokenizer("say one", return_tensors="pt")
    assert inputs["input_ids"].shape[1] == len("say one")
    answer = result.policy.generate(**inputs, max_new_tokens=4, do_sample=False)
    folder = result.save(tmp_path / "policy")
    assert {path.name for path in folder.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "history.csv", "validation.csv"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(loaded(**inputs).logits, result.policy(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert loaded.generate(**inputs, max_new_tokens=4, do_sample=False).tolist() == answer.tolist()
    with pytest.raises(DataError, match="exists and is not empty"):
        result.save(folder)


def test_all_weights_of_a_model(model: Path, tmp_path: Path) -> None:
    result = train(model, adapter="full", gradient_checkpointing=True, precision="bfloat16", learning_rate=1e-3)
    folder = result.save(tmp_path / "policy")
    inputs = result.tokenizer("say one", return_tensors="pt")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(loaded(**inputs).logits, result.policy(**inputs).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"reference": {"update": "sync", "alpha": 0.5, "every": 2}},
        {"constraints": {"chosen_drop": {"threshold": 0.0, "multiplier": 0.1, "dual_rate": 0.0}}},
        {"adapter": "prefix"},
        {"loss": "kto"},
        {"loss": {"sigmoid": 0.8, "sft": 0.2}},
    ],
)
def test_what_the_pipeline_can_do(model: Path, options: dict[str, Any]) -> None:
    result = train(model, epochs=1, **options)
    assert result.history["loss"].notna().all()
    assert ("constraint/chosen_drop" in result.history) == ("constraints" in options)


def test_rows_as_the_readers_take_them(model: Path) -> None:
    """Messages, and mappings instead of a dataframe; NumPy arrays, as in a dataframe read from parquet."""
    turns = [[{"role": "user", "content": prompt}] for prompt in FRAME["prompt"]]
    replies = {
        side: [[{"role": "assistant", "content": text}] for text in FRAME[side]] for side in ("chosen", "rejected")
    }
    messages = pd.DataFrame(
        {side: [turn + reply for turn, reply in zip(turns, replies[side], strict=True)] for side in replies}
    )
    expected = train(model).history
    for frame in (FRAME.to_dict("records"), messages, messages.map(pd.Series).map(lambda turns: turns.to_numpy())):
        history = dpo.train(frame, model, **LENGTHS, **SETTINGS).history
        pd.testing.assert_frame_equal(history, expected)


# A function as loss


def test_an_own_loss_with_a_built_in_formula_gives_its_weights(model: Path, tmp_path: Path) -> None:
    def mine(chosen: Tensor, rejected: Tensor, beta: float, *, smoothing: float = 0.0) -> Tensor:
        z = beta * (chosen - rejected)
        return -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)

    expected = trained_weights(train(model, label_smoothing=0.2), tmp_path / "sigmoid")
    assert_equal(trained_weights(train(model, loss=mine, smoothing=0.2), tmp_path / "mine"), expected)
    without = trained_weights(train(model, loss=mine), tmp_path / "without")
    assert any((without[name] != expected[name]).any() for name in expected)


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rat": 1e-3}, "learning_rat: unknown option; did you mean 'learning_rate'?"),
        ({"epochs": 0}, "epochs: input should be greater than or equal to 1, not 0"),
        ({"epochs": "two"}, "epochs: input should be a valid integer, not 'two'"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0, not -1"),
        ({"adapter": {"rnak": 2}}, "adapter.rnak: unknown key; did you mean 'rank'?"),
        ({"adapter": "lroa"}, "adapter: input tag 'lroa' found"),
        ({"adapter": {"target_modules": ["x"]}}, "adapter.target_modules: this model has no module 'x'; choose from"),
        ({"reference": {"update": "polyak"}}, "reference: update 'polyak' needs 'alpha'"),
        ({"constraints": {"lk": None}}, "constraints.lk: input should be 'kl' or 'chosen_drop', not 'lk'"),
        ({"loss": "dpo"}, "loss: no loss 'dpo'; did you mean 'ipo'?"),
        ({"template": "chatt"}, "template: input should be 'chat' or 'instruction', not 'chatt'"),
        ({"max_prompt_tokens": 200}, "max_prompt_tokens + max_response_tokens is 220, but the model has 128 positions"),
        ({"val_fraction": 1.0}, "val_fraction: input should be less than 1, not 1.0"),
        ({"optimizer": torch.optim.Adam}, "an option has a value that params.yaml could not hold"),
        ({"revision": "main"}, "revision: 'main' is no commit; pass its 40 hex digits"),
    ],
)
def test_a_mistake_is_one_line(options: dict[str, Any], message: str, model: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        train(model, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAME.assign(chosen=["a", None, *"cdefghi", None]), "row 2 of the frame: chosen: null"),
        (FRAME.rename(columns={"chosen": "best"}), "row 1 of the frame: "),
        (FRAME.iloc[:0], "frame: has no rows"),
        (FRAME.assign(chosen=[{1}] * 10), "frame: a set in a row; use text"),
    ],
)
def test_wrong_rows_are_named(frame: pd.DataFrame, message: str, model: Path) -> None:
    with pytest.raises(DataError) as caught:
        dpo.train(frame, model, **LENGTHS)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_names_the_rows(model: Path) -> None:
    with pytest.raises(PrefdagError, match=r"^step 1: .* not finite; rows (\d+, )+\d+; look at these rows"):
        train(model, learning_rate=1e38)  # products overflow; 1e9 gave finite numbers on some processors


def test_folders_without_a_model_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^nowhere: no such folder; for a repository on the hub, pass revision"):
        dpo.train(FRAME, "nowhere")
    with pytest.raises(DataError, match=r"needs config\.json and \.safetensors weights"):
        dpo.train(FRAME, tmp_path)
    with_adapter = shutil.copytree(model, tmp_path / "both")
    (with_adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="has an adapter"):
        dpo.train(FRAME, with_adapter)


def test_a_cut_is_said(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(model, epochs=1, max_response_tokens=6)
    assert "cut: 0.0% of the prompts, 100.0% of the chosen responses, " in caplog.text
    assert "limits: 100 tokens for a prompt, 6 for a response" in caplog.text
    caplog.clear()
    train(model, epochs=1)
    assert "cut:" not in caplog.text


def test_default_limits_fit_the_window(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """128 positions: the responses get what they need, the prompts the rest."""
    for given in ({}, {"max_response_tokens": 18}):
        caplog.clear()
        dpo.train(FRAME, model, template="instruction", **given)
        limits = re.search(r"100\.0% of the prompts, .*\b(\d+) tokens for a prompt, (\d+) for a response", caplog.text)
        assert limits
        assert int(limits[1]) + int(limits[2]) == 128
        assert int(limits[2]) == given.get("max_response_tokens", int(limits[2]))


def test_a_policy_stops_where_the_template_ends_a_turn(model: Path) -> None:
    """And its tokenizer renders prompts as in training."""
    trained = train(model, epochs=1, template="instruction")
    chat = ChatTokenizer(model, "instruction")
    assert trained.policy.generation_config.eos_token_id == list(chat.stop_ids)
    messages = [{"role": "user", "content": "hi"}]
    ids = trained.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == chat.prompt(messages).ids


def test_published_splits_of_a_frame(model: Path) -> None:
    """Rows of test are not trained on, and those of val validate."""
    split = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    options = {**LENGTHS, **SETTINGS, "epochs": 1, "validate_every": 1}
    published = dpo.train(FRAME.assign(split=split), model, **options)
    alone = dpo.train(FRAME[:6], model, **options)
    pd.testing.assert_frame_equal(published.history, alone.history)
    assert len(published.validation)
    assert not len(alone.validation)


def test_a_model_of_the_hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The revision goes to the hub, and repository and revision into the adapter."""
    asked: list[Any] = []

    def download(repo: str, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repo, revision))
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    result = dpo.train(FRAME, "a/b", revision="0" * 40, **LENGTHS)
    assert asked == [("a/b", "0" * 40)]
    config = pd.read_json(result.save(tmp_path / "x") / "adapter_config.json", typ="series")
    assert (config["base_model_name_or_path"], config["revision"]) == ("a/b", "0" * 40)

    def refuse(*_: Any, **__: Any) -> str:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(SourceError, match=rf"^a/b at {'0' * 40}: cannot be fetched: no network$"):
        notebook.train(FRAME, "a/b", revision="0" * 40)
