"""Conversion of a fetched model, on tiny random models."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from model_folders import TEMPLATE, TOKENS, model_folder, tiny, tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json, sha256, write_json
from prefdag.text.convert import convert

IDS = torch.tensor([[1, 17, 42, 99, 3]])


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2"])
def test_a_converted_folder_computes_the_same_function(architecture: str, tmp_path: Path) -> None:
    convert(model_folder(tmp_path / "in", architecture), tmp_path / "out")
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(tiny(architecture)), rtol=0, atol=0)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert read_json(tmp_path / "out/tokenizer_config.json")["eos_token"] == "</s>"
    assert (tmp_path / "out/chat_template.jinja").read_text() == TEMPLATE


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    convert(model_folder(tmp_path / "in", dtype=torch.bfloat16), tmp_path / "out")
    assert {weight.dtype for weight in load_file(tmp_path / "out/model.safetensors").values()} == {torch.float32}
    assert read_json(tmp_path / "out/config.json")["dtype"] == "float32"


def test_the_same_source_gives_the_same_bytes_in_any_place(tmp_path: Path) -> None:
    first, second = model_folder(tmp_path / "here/in"), tmp_path / "somewhere/else"
    shutil.copytree(first, second)
    convert(first, tmp_path / "a")
    convert(second, tmp_path / "another/b")
    assert sha256(tmp_path / "a") == sha256(tmp_path / "another/b")
    text = "".join(path.read_text() for path in (tmp_path / "a").glob("*.json"))
    assert str(tmp_path) not in text


def test_tokenizer_json_is_kept_whatever_class_claims_it(tmp_path: Path) -> None:
    """transformers would rebuild a GPT2Tokenizer from its vocabulary and lose the normaliser."""
    source = model_folder(tmp_path / "in", "gpt2")
    write_json(source / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"})
    assert AutoTokenizer.from_pretrained(source)("Hello").input_ids != tokenizer().encode("Hello").ids
    convert(source, tmp_path / "out")
    kept = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    assert kept.encode("Hello").ids == kept.encode("hello").ids == tokenizer().encode("hello").ids


# --- GGUF -------------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, model: PreTrainedModel) -> None:
    """Write a tied llama and its tokenizer as one GGUF file with float32 tensors."""
    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in weights.items():
        if name == "lm_head.weight":
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # GGUF interleaves the halves that the rotary embedding rotates
            weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        base, _, suffix = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(base)}.{suffix}", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
def test_a_gguf_becomes_a_folder_with_the_same_function(tmp_path: Path) -> None:
    model = tiny("llama-tied")
    for place in ("one", "two/deeper"):
        (tmp_path / place).mkdir(parents=True)
        write_gguf(tmp_path / place / "tiny.gguf", model)
        convert(tmp_path / place, tmp_path / "out" / place)
    torch.testing.assert_close(logits(load(tmp_path / "out/one")), logits(model), rtol=0, atol=1e-5)
    assert sha256(tmp_path / "out/one") == sha256(tmp_path / "out/two/deeper")
    assert "quantization_config" not in read_json(tmp_path / "out/one/config.json")
    assert read_json(tmp_path / "out/one/tokenizer_config.json")["eos_token"] == "</s>"
    assert (tmp_path / "out/one/chat_template.jinja").read_text() == TEMPLATE


def test_a_gguf_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    write_gguf(tmp_path / "in" / "tiny.gguf", tiny("llama-tied"))
    parsed = []
    reader = gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", lambda *arguments: parsed.append(arguments) or reader(*arguments))
    convert(tmp_path / "in", tmp_path / "out")
    assert len(parsed) == 1


# --- refusals ---------------------------------------------------------------------------------------------------------


def refusal(source: Path, tmp_path: Path) -> str:
    with pytest.raises(DataError) as caught:
        convert(source, tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) not in message
    return message


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "in")
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    assert "1 weights are missing, for example 'model.layers.1.mlp.up_proj.weight'" in refusal(source, tmp_path)


def test_a_model_without_an_eos_token_is_refused(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "in")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        content = {key: value for key, value in read_json(source / name).items() if not key.startswith("eos_token")}
        write_json(source / name, {**content, "eos_token_id": None} if name == "config.json" else content)
    assert "no EOS token" in refusal(source, tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "in")
    larger = tokenizer()
    larger.add_tokens(["<one>", "<more>"])
    larger.save(str(source / "tokenizer.json"))
    assert f"the tokenizer has {len(TOKENS) + 2} tokens, the model's embedding only {len(TOKENS)};" in refusal(
        source, tmp_path
    )


@pytest.mark.parametrize(
    "damage",
    {
        "truncated": lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 99)),
        "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
        "not JSON": lambda folder: (folder / "config.json").write_text("{"),
        "unknown": lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of"})),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_damaged_folder_is_refused(damage: Any, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "in")
    damage[1](source)
    name = "model.safetensors" if damage[0] == "truncated" else "config.json"
    assert refusal(source, tmp_path).startswith(f"{name}: ")


def test_a_source_without_a_model_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    assert "the source has no file" in refusal(source, tmp_path)
    (source / "a.gguf").write_bytes(b"GGUF\3\0\0\0")
    assert refusal(source, tmp_path).startswith("a.gguf: not a causal language model")
    (source / "b.gguf").write_bytes(b"")
    assert "one of 2 .gguf files" in refusal(source, tmp_path)
