"""Folders that hold part of a model, or more than one: each becomes the model it is, or one line that says what to do."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_folders import model_folder, tiny
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, LlamaForSequenceClassification

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import sha256, write_json
from prefdag.text.convert import convert

ADAPTER = {"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"], "base_model_name_or_path": "some/base"}


def shards(folder: Path) -> None:
    tiny("llama").save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink()


def adapter(folder: Path) -> None:
    write_json(folder / "adapter_config.json", ADAPTER)
    save_file({"base_model.model.lora_A.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")


def only_adapter(folder: Path) -> None:
    adapter(folder)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lost_shard(folder: Path) -> None:
    shards(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def lost_index(folder: Path) -> None:
    shards(folder)
    (folder / "model.safetensors.index.json").unlink()


def two_sets(folder: Path) -> None:
    shards(folder)
    save_file({}, folder / "model.safetensors")


def broken_index(folder: Path) -> None:
    shards(folder)
    (folder / "model.safetensors.index.json").write_text("[]")


def another_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def gguf_beside(folder: Path) -> None:
    (folder / "tiny.Q4_0.gguf").write_bytes(b"GGUF")


def split_gguf(folder: Path) -> None:
    (folder / "tiny-00001-of-00002.gguf").write_bytes(b"GGUF")


def only_tokenizer(folder: Path) -> None:
    for path in folder.iterdir():
        if not path.name.startswith(("tokenizer", "chat_template")):
            path.unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def only_weights(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "model.safetensors":
            path.unlink()


def mistral(folder: Path) -> None:
    only_weights(folder)
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    for name in ("params.json", "tekken.json"):
        (folder / name).write_text("{}")


def mistral_with_config(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")


def two_models(folder: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-20"):
        shutil.copytree(folder, folder.parent / "copies" / name)
    shutil.rmtree(folder)
    (folder.parent / "copies").rename(folder)


def reward_model(folder: Path) -> None:
    LlamaForSequenceClassification(tiny("llama-tied").config).save_pretrained(folder)


def encoder(folder: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=300, eos_token_id=2, **sizes)).save_pretrained(folder)


HALF: dict[Callable[[Path], None], str] = {
    adapter: "adapter_config.json: an adapter beside a whole model (model.safetensors), and only one of them would be used",
    only_adapter: "adapter_config.json: an adapter, not a whole model; make it download_model.adapter, and its base "
    "model 'some/base' download_model.source",
    pickled: "*.safetensors: not found; pytorch_model.bin is refused, since it can run code when it is loaded",
    lost_shard: "model.safetensors.index.json: names model-00002-of-",
    lost_index: "model.safetensors.index.json: not found, but it must name the parts, such as model-00001-of-",
    two_sets: "model.safetensors.index.json: beside model.safetensors, so there are two sets of weights",
    broken_index: "model.safetensors.index.json: not an index of weights",
    another_name: "model.safetensors: not found; the weights are in weights.safetensors; rename the file",
    gguf_beside: "tiny.Q4_0.gguf: beside model.safetensors, which is another form of a model",
    split_gguf: "tiny-00001-of-00002.gguf: a part of a split model",
    only_tokenizer: "config.json: not found; the source has only a tokenizer (chat_template.jinja, ",
    no_weights: "*.safetensors: not found, nor is a .gguf file; the source has ",
    only_weights: "model.safetensors: the weights alone; name the folder that has them",
    mistral: "consolidated.safetensors: weights in Mistral's own form; use the same model in the form of transformers",
    mistral_with_config: "consolidated.safetensors: weights in Mistral's own form; add model.safetensors",
    two_models: "config.json: not at the top of the source, but there are models in checkpoint-10, checkpoint-20",
    reward_model: "config.json: the model is a LlamaForSequenceClassification, not a causal language model",
    encoder: "config.json: the model is a BertForMaskedLM, not a causal language model",
}


@pytest.mark.slow
@pytest.mark.parametrize("change", HALF, ids=lambda change: change.__name__)
def test_half_a_model_is_one_line(change: Callable[[Path], None], tmp_path: Path) -> None:
    change(model_folder(tmp_path / "in"))
    with pytest.raises(DataError) as caught:
        convert(tmp_path / "in", tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(HALF[change])
    assert "\n" not in message
    assert str(tmp_path) not in message


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"\0" * len(content)],
    ids=["half", "nothing", "zeros"],
)
def test_a_file_that_is_not_whole_is_named(name: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = model_folder(tmp_path / "in") / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"^{name}: not whole, .*; fetch or copy it again$"):
        convert(tmp_path / "in", tmp_path / "out")


def test_a_part_that_was_cut_by_a_byte_is_named(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "in") / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"^model.safetensors: not whole, it has {size - 1:,} of {size:,} bytes; "):
        convert(tmp_path / "in", tmp_path / "out")


def whole(tmp_path: Path) -> str:
    """The hash of the conversion of an unchanged folder."""
    convert(model_folder(tmp_path / "whole"), tmp_path / "whole-out")
    return sha256(tmp_path / "whole-out")


def test_shards_are_the_same_model(tmp_path: Path) -> None:
    shards(model_folder(tmp_path / "in"))
    convert(tmp_path / "in", tmp_path / "out")
    assert sha256(tmp_path / "out") == whole(tmp_path)


@pytest.mark.parametrize("nested", ["sub", "deeper/sub"])
def test_the_only_model_below_the_top_is_it(nested: str, tmp_path: Path) -> None:
    model_folder(tmp_path / "in" / nested)
    (tmp_path / "in/README.md").write_text("# A model")
    convert(tmp_path / "in", tmp_path / "out")
    assert sha256(tmp_path / "out") == whole(tmp_path)


def test_the_model_at_the_top_is_it_and_other_weights_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = model_folder(tmp_path / "in")
    shutil.copytree(folder, folder / "checkpoint-10")
    shutil.copyfile(folder / "model.safetensors", folder / "consolidated.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        convert(folder, tmp_path / "out")
    assert sha256(tmp_path / "out") == whole(tmp_path)
    assert "not read: consolidated.safetensors, pytorch_model.bin; the weights are in other files" in caplog.messages


def test_weights_without_a_place_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = model_folder(tmp_path / "in")
    weights = load_file(folder / "model.safetensors") | {"vision.patches.weight": torch.zeros(3)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.WARNING):
        convert(folder, tmp_path / "out")
    assert caplog.messages[-1].startswith("1 weights have no place in LlamaForCausalLM and are left out, for example")
    assert sha256(tmp_path / "out") == whole(tmp_path)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    with pytest.raises(DataError) as caught:
        convert(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "quantised" in str(caught.value)
