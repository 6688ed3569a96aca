"""Adapters that download_model merges into its model, on tiny random models."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import TEMPLATE, model_folder
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prefdag.config.download_model import DownloadModel
from prefdag.config.sources import PathSource
from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json, sha256, write_json
from prefdag.text.convert import convert
from prefdag.text.merge import merge
from stages import download_model

pytestmark = pytest.mark.slow

UNSEEN = torch.randint(0, 250, (4, 24), generator=torch.Generator().manual_seed(7))


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)


def adapter_of(model: Path, folder: Path, config: Any = None, **options: Any) -> Path:
    """A folder with an adapter of random weights on the model in `model`; LoRA unless another `config` is given."""
    torch.manual_seed(1)
    options = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options
    policy: Any = get_peft_model(load(model), config or LoraConfig(**options))
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn_like(weight)
    policy.save_pretrained(folder)
    (folder / "README.md").unlink()
    return folder


def merged(adapter: Path, source: Path, into: Path) -> Path:
    convert(source, into)
    merge(adapter, source, into)
    return into


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(UNSEEN).logits


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2"])
@pytest.mark.parametrize(
    "kind", [{}, {"use_rslora": True}, {"use_dora": True}, {"rank_pattern": {"v_proj": 4}}], ids=str
)
def test_the_merged_model_is_the_unmerged_one(architecture: str, kind: dict[str, Any], tmp_path: Path) -> None:
    """As peft computes it, on rows that the check after merging does not have."""
    model = model_folder(tmp_path / "model", architecture)
    targets = {"target_modules": ["c_attn"], "fan_in_fan_out": True} if architecture == "gpt2" else {}
    if architecture == "gpt2" and "rank_pattern" in kind:
        kind = {"rank_pattern": {"c_attn": 4}}
    adapter = adapter_of(model, tmp_path / "adapter", **targets, **kind)
    expected = logits(PeftModel.from_pretrained(load(model), str(adapter)).eval())
    actual = logits(load(merged(adapter, model, tmp_path / "out")))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert float((expected - logits(load(model))).abs().max()) > 0.01 * float(expected.abs().max()), "it does nothing"


def test_a_merged_model_is_the_same_bytes_in_any_place(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    adapter = adapter_of(model, tmp_path / "adapter")
    shutil.copytree(adapter, tmp_path / "elsewhere/deeper/adapter")
    merged(adapter, model, tmp_path / "a")
    merged(tmp_path / "elsewhere", model, tmp_path / "b")
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")
    plain = tmp_path / "plain"
    convert(model, plain)
    assert {path.name for path in plain.iterdir()} == {path.name for path in (tmp_path / "a").iterdir()}
    assert all(sha256(plain / name) == sha256(tmp_path / "a" / name) for name in ("config.json", "tokenizer.json"))


def test_half_precision_of_an_adapter_is_merged_in_float32(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    adapter = adapter_of(model, tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    save_file({name: t.bfloat16() for name, t in load_file(weights).items()}, weights)
    out = merged(adapter, model, tmp_path / "out")
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.float32}


# --- refusals ---------------------------------------------------------------------------------------------------------


def configured(**changes: Any) -> Callable[[Path, Path], None]:
    def change(adapter: Path, model: Path) -> None:
        write_json(adapter / "adapter_config.json", read_json(adapter / "adapter_config.json") | changes)

    return change


def stored(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path, Path], None]:
    def change(adapter: Path, model: Path) -> None:
        tensors = load_file(adapter / "adapter_model.safetensors")
        edit(tensors)
        save_file(tensors, adapter / "adapter_model.safetensors")

    return change


def rebuilt(**options: Any) -> Callable[[Path, Path], None]:
    def change(adapter: Path, model: Path) -> None:
        shutil.rmtree(adapter)
        adapter_of(model, adapter, **options)

    return change


def pickled(adapter: Path, model: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def cut(adapter: Path, model: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def whole_model(adapter: Path, model: Path) -> None:
    shutil.rmtree(adapter)
    shutil.copytree(model, adapter)


def beside(adapter: Path, model: Path) -> None:
    shutil.copyfile(model / "model.safetensors", adapter / "model.safetensors")


def two_adapters(adapter: Path, model: Path) -> None:
    for step in ("10", "20"):
        shutil.copytree(adapter, adapter.parent / "copies" / step)
    shutil.rmtree(adapter)
    (adapter.parent / "copies").rename(adapter)


def more_tokens(adapter: Path, model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 300, "content": "<new>"})
    write_json(adapter / "tokenizer.json", tokenizer)


def slow_tokenizer(adapter: Path, model: Path) -> None:
    (adapter / "tokenizer.model").write_bytes(b"x")


def other_template(adapter: Path, model: Path) -> None:
    (adapter / "chat_template.jinja").write_text("{{ messages }}")


def other_end(adapter: Path, model: Path) -> None:
    write_json(adapter / "tokenizer_config.json", {"eos_token": {"content": "<s>"}, "chat_template": TEMPLATE})


PREFIX = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
IA3 = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
REFUSED: list[tuple[Callable[[Path, Path], None], str]] = [
    (rebuilt(config=PREFIX), "adapter_config.json: peft_type: PREFIX_TUNING: a prefix cannot be merged into weights; use"),
    (rebuilt(config=IA3), "adapter_config.json: peft_type: IA3: only LORA is merged here; merge it with peft's"),
    (rebuilt(modules_to_save=["lm_head"]), "adapter_config.json: modules_to_save: ['lm_head']: not supported here; merge it"),
    (rebuilt(trainable_token_indices=[1, 2]), "adapter_config.json: trainable_token_indices: [1, 2]: not supported here"),
    (rebuilt(bias="all"), "adapter_config.json: bias: all: not supported here; merge it"),
    (configured(task_type="SEQ_CLS"), "adapter_config.json: task_type: SEQ_CLS: not of a causal language model"),
    (configured(init_lora_weights="pissa"), "adapter_config.json: init_lora_weights: pissa: it may have changed the base"),
    (configured(of_tomorrow=True), "adapter_config.json: of_tomorrow: True: not supported here; merge it"),
    (configured(peft_type=None), "adapter_config.json: peft_type: missing; it is no adapter's configuration"),
    (configured(r=4), "adapter_config.json: not an adapter of the model in download_model.source: "),
    (configured(target_modules=["nothing"]), "adapter_config.json: not an adapter of the model in download_model.source: "),
    (configured(target_modules=["q_proj"]), "adapter_model.safetensors: base_model.model.model.layers.0.self_attn.v_proj.lora"),
    (stored(lambda tensors: tensors.pop(NAME)), f"adapter_model.safetensors: {NAME}: missing; choose"),
    (
        stored(lambda tensors: tensors.update(more=torch.zeros(1))),
        "adapter_model.safetensors: more: no tensor of this adapter on this model; choose",
    ),
    (stored(lambda tensors: tensors[NAME].fill_(torch.nan)), f"adapter_model.safetensors: {NAME}: not finite; choose"),
    (pickled, "adapter_model.safetensors: not found; adapter_model.bin is refused, since it can run code"),
    (cut, "adapter_model.safetensors: not whole, it has "),
    (whole_model, "adapter_config.json: not found; the source has chat_template.jinja, config.json, "),
    (beside, "adapter_config.json: an adapter beside a whole model (model.safetensors)"),
    (two_adapters, "adapter_config.json: not at the top of the source, but there are adapters in 10, 20; choose one"),
    (more_tokens, "tokenizer.json: the adapter's is not that of the model; leave the tokenizer's files out of"),
    (slow_tokenizer, "tokenizer.model: without tokenizer.json, it cannot be compared"),
    (other_template, "tokenizer_config.json: chat_template: the adapter's is not that of the model; leave"),
    (other_end, "tokenizer_config.json: eos_token: the adapter's is not that of the model; leave"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "start"), REFUSED, ids=[start[:60] for _, start in REFUSED])
def test_what_cannot_be_merged_is_one_line(change: Callable[[Path, Path], None], start: str, tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    adapter = adapter_of(model, tmp_path / "adapter")
    merged(adapter, model, tmp_path / "good")
    convert(model, tmp_path / "out")
    before = sha256(tmp_path / "out")
    change(adapter, model)
    with pytest.raises(DataError) as caught:
        merge(adapter, model, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(start)
    assert "\n" not in message
    assert str(tmp_path) not in message
    assert sha256(tmp_path / "out") == before, "it was changed"


def test_a_head_that_is_tied_to_the_embedding_is_refused(tmp_path: Path) -> None:
    """peft merges the change of the head into the embedding as well."""
    model = model_folder(tmp_path / "model", "llama-tied")
    adapter = adapter_of(model, tmp_path / "adapter", target_modules=["lm_head"])
    weights = adapter / "adapter_model.safetensors"
    own = {name: t for name, t in load_file(weights).items() if "lora" in name}
    save_file(own, weights)
    with pytest.raises(DataError, match=r"^adapter_config.json: merged, it computes something else: logits differ by "):
        merged(adapter, model, tmp_path / "out")


def test_the_files_of_the_same_tokenizer_may_come_along(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    adapter = adapter_of(model, tmp_path / "adapter")
    alone = merged(adapter, model, tmp_path / "alone")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(model / name, adapter / name)
    padded = json.loads((model / "tokenizer.json").read_text())  # as a trainer leaves it
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    padded["padding"] = padding | {"pad_id": 0, "pad_type_id": 0, "pad_token": "</s>"}
    write_json(adapter / "tokenizer.json", padded)
    assert sha256(merged(adapter, model, tmp_path / "out")) == sha256(alone)


# --- the base model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["source", "model"])
def test_a_base_that_is_named_by_its_hash_is_compared(of: str, tmp_path: Path) -> None:
    """With the file that was downloaded, or with what it was converted to."""
    model = model_folder(tmp_path / "model", dtype=torch.bfloat16)
    adapter = adapter_of(model, tmp_path / "adapter")
    convert(model, tmp_path / "converted")
    digest = sha256({"source": model, "model": tmp_path / "converted"}[of] / "model.safetensors")
    configured(base_model_name_or_path=f"sha256:{digest}")(adapter, model)
    merged(adapter, model, tmp_path / "out")
    configured(base_model_name_or_path=f"sha256:{'0' * 64}")(adapter, model)
    with pytest.raises(
        DataError, match=rf"has the SHA-256 {'0' * 64}, but that of download_model.source has [0-9a-f]{{64}}; "
    ):
        merged(adapter, model, tmp_path / "other")


def test_a_base_that_is_only_a_name_is_said_to_be_unchecked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = model_folder(tmp_path / "model")
    adapter = adapter_of(model, tmp_path / "adapter")
    configured(base_model_name_or_path="some/base")(adapter, model)
    with caplog.at_level(logging.WARNING):
        merged(adapter, model, tmp_path / "out")
    assert "made for 'some/base'; only shapes tell whether download_model.source is that model" in caplog.text


# --- the stage --------------------------------------------------------------------------------------------------------


def here(path: Path) -> PathSource:
    return PathSource(kind="path", path=str(path), sha256=None)


def test_the_stage_merges_or_leaves_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = model_folder(tmp_path / "model")
    adapter = adapter_of(model, tmp_path / "adapter")
    convert(model, tmp_path / "plain")
    download_model.main(DownloadModel(source=here(model), adapter=None))
    assert sha256(Path("models/base")) == sha256(tmp_path / "plain")
    merged(adapter, model, tmp_path / "merged")
    download_model.main(DownloadModel(source=here(model), adapter=here(adapter)))
    assert sha256(Path("models/base")) == sha256(tmp_path / "merged") != sha256(tmp_path / "plain")
    pickled(adapter, model)
    with pytest.raises(DataError, match=r"^adapter_model.safetensors: not found"):
        download_model.main(DownloadModel(source=here(model), adapter=here(adapter)))
    assert [path.name for path in Path("models").iterdir()] == ["base"]
    assert sha256(Path("models/base")) == sha256(tmp_path / "merged")
