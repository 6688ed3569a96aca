"""An export gives the same results as the pipeline's models, or it fails and writes nothing."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from chat_templates import write_model_tokenizer
from dialogues import CHATML, LLAMA, user, write_byte_tokenizer
from export_project import DIALOGUES, SMALL, random_images, record, write_policy, write_project, write_reference
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from prefdag.check_params import load_params
from prefdag.cli import app
from prefdag.config.download_model import DownloadModel
from prefdag.config.sources import HubSource
from prefdag.export import image, pipeline, readback, text
from prefdag.image import model as resnet
from prefdag.image.data import normalise
from prefdag.lifecycle.errors import DataError, PrefdagError
from prefdag.pairs.turns import Asked
from prefdag.runtime.artifacts import sha256
from prefdag.text import model as lm
from prefdag.text.convert import convert
from prefdag.text.merge import merge
from prefdag.text.trainable import copy_tokenizer
from prefdag.tokenizer.tokenizer import ChatTokenizer

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
ROWS = [[5, 9, 70, 8], [1, 2, 3], [200]]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=0, atol=readback.TOLERANCE * float(b.abs().max())))


def edit_json(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def scale(file: Path, name: str, factor: float) -> None:
    """Multiply one element of one tensor in a safetensors file."""
    tensors = load_file(file)
    tensors[name].view(-1)[0] *= factor
    save_file(tensors, file, metadata={"format": "pt"})


# Text


@pytest.fixture(
    params=[(kind, adapter) for kind in ("llama", "gpt2") for adapter in ("lora", "rslora", "dora", "full")]
)
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, str]:
    """A reference, a policy's folder, and the template it was trained with."""
    kind, adapter = request.param
    reference = write_reference(tmp_path / "reference", kind)
    write_policy(reference, adapter, tmp_path / "policy")
    return reference, tmp_path / "policy", "chat" if kind == "llama" else "instruction"


def merged_folder(reference: Path, policy: Path, template: Any, folder: Path) -> torch.nn.Module:
    merged = text.merge(lm.load_models(reference, policy, packed=False).policy)
    assert merged is not None
    text.write_merged(merged, reference, ChatTokenizer(reference, template), folder)
    return merged


def test_a_merged_model_gives_the_policys_logits(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    reference, policy, template = trained
    models = lm.load_models(reference, policy, packed=False)
    ours, before = text.logits(models.policy, ROWS), text.logits(models.reference, ROWS)
    merged_folder(reference, policy, template, tmp_path / "text")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    with torch.no_grad():
        exported = torch.cat([theirs(torch.tensor([ids])).logits[0] for ids in ROWS])
    assert close(exported, ours)
    assert not close(before, ours)
    assert not (tmp_path / "text" / "adapter_config.json").exists()


def test_a_merged_model_ends_generation_at_the_policys_eos(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    reference, policy, template = trained
    merged_folder(reference, policy, template, tmp_path / "text")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "text")
    ours = ChatTokenizer(reference, template)  # type: ignore[arg-type]
    assert tokenizer.eos_token_id == ours.eos_id
    generation = json.loads((tmp_path / "text" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (ours.eos_id, ours.eos_id)


def test_a_merged_model_keeps_the_models_own_stop_ids(tmp_path: Path) -> None:
    """And the end of a turn, which is not the EOS of this tokenizer."""
    reference = write_reference(tmp_path / "reference")
    edit_json(reference / "tokenizer_config.json", eos_token="<|endoftext|>")
    edit_json(reference / "generation_config.json", eos_token_id=[260, 261])
    write_policy(reference, "lora", tmp_path / "policy")
    merged_folder(reference, tmp_path / "policy", "chat", tmp_path / "text")
    generation = json.loads((tmp_path / "text" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [262, 260, 261]  # <|im_end|>, <|endoftext|>, and <|im_start|> from its list
    assert generation["pad_token_id"] == 260
    assert AutoTokenizer.from_pretrained(tmp_path / "text").eos_token == "<|endoftext|>"


def test_a_prefix_is_not_merged_but_its_adapter_loads(tmp_path: Path) -> None:
    reference = write_reference(tmp_path / "reference")
    write_policy(reference, "prefix", tmp_path / "policy")
    policy = lm.load_models(reference, tmp_path / "policy", packed=False).policy
    assert text.merge(policy) is None
    expected = text.logits(policy, ROWS)
    text.check_adapter(tmp_path / "policy", reference, expected, ROWS)
    scale(tmp_path / "policy/adapter_model.safetensors", "prompt_embeddings", 30.0)
    with pytest.raises(PrefdagError, match="differs from the pipeline's model"):
        text.check_adapter(tmp_path / "policy", reference, expected, ROWS)


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_an_adapter_that_lacks_one_layer_is_detected(adapter: str, tmp_path: Path) -> None:
    reference = write_reference(tmp_path / "reference")
    write_policy(reference, adapter, tmp_path / "policy")
    expected = text.logits(lm.load_models(reference, tmp_path / "policy", packed=False).policy, ROWS)
    deviation = text.check_adapter(tmp_path / "policy", reference, expected, ROWS)
    assert 0 <= deviation.largest < readback.TOLERANCE * deviation.scale
    assert deviation.logits == (4 + 3 + 1) * 263  # tokens of ROWS, vocabulary
    file = tmp_path / "policy/adapter_model.safetensors"
    tensors = load_file(file)
    (name,) = (name for name in tensors if "layers.1" in name and "v_proj.lora_B" in name)
    save_file(tensors | {name: torch.zeros_like(tensors[name])}, file)
    with pytest.raises(
        PrefdagError, match="policy: read back, it differs from the pipeline's model: largest deviation"
    ):
        text.check_adapter(tmp_path / "policy", reference, expected, ROWS)


def test_one_changed_element_of_a_tensor_is_detected(tmp_path: Path) -> None:
    """The element is in the embedding of a token that no row has, so that the logits are the same."""
    reference = write_reference(tmp_path / "reference")
    write_policy(reference, "lora", tmp_path / "policy")
    expected = text.logits(lm.load_models(reference, tmp_path / "policy", packed=False).policy, ROWS)
    merged = merged_folder(reference, tmp_path / "policy", "chat", tmp_path / "text")
    text.check_merged(tmp_path / "text", merged, expected, ROWS)
    scale(tmp_path / "text/model.safetensors", "model.embed_tokens.weight", 1.0001)
    with pytest.raises(PrefdagError, match=r"text: read back, model\.embed_tokens\.weight is not what was written"):
        text.check_merged(tmp_path / "text", merged, expected, ROWS)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_is_a_deviation(value: float) -> None:
    with pytest.raises(PrefdagError, match="m: read back"):
        readback.check_logits("m", torch.tensor([1.0, value]), torch.tensor([1.0, 2.0]))


def test_the_tolerance_is_a_share_of_the_largest_logit() -> None:
    expected = torch.tensor([100.0, 0.0])  # 1e-4 * 100 = 0.01
    assert readback.check_logits("m", torch.tensor([100.0, 0.009]), expected) == pytest.approx((0.009, 100.0, 2))
    with pytest.raises(
        PrefdagError, match=r"largest deviation 1.1e-02 of 2 logits up to 100.0, at most 1.0e-02 allowed"
    ):
        readback.check_logits("m", torch.tensor([100.0, 0.011]), expected)


# Templates


def with_date(folder: Path) -> Path:
    template = (
        "{{ bos_token + strftime_now('%d %b %Y') }}{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}"
    )
    return write_byte_tokenizer(folder, ["<s>", "</s>"], template, bos_first=True, bos_token="<s>", eos_token="</s>")


def without_bos(folder: Path) -> Path:
    template = "{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}"
    return write_byte_tokenizer(folder, ["<s>", "</s>"], template, bos_first=True, bos_token="<s>", eos_token="</s>")


def llama(folder: Path) -> Path:
    return write_byte_tokenizer(folder, ["<s>", "</s>"], LLAMA, bos_first=True, bos_token="<s>", eos_token="</s>")


def no_bos(folder: Path) -> Path:
    return write_byte_tokenizer(folder, ["</s>"], None, eos_token="</s>")


@pytest.mark.parametrize("write", [with_date, without_bos, llama, no_bos, write_reference])
@pytest.mark.parametrize("template", ["chat", "instruction"])
def test_the_exported_template_gives_the_ids_of_training(
    write: Callable[[Path], Path], template: Any, tmp_path: Path
) -> None:
    if write is no_bos and template == "chat":
        return  # this model has no chat template
    base = write(tmp_path / "base")
    if not (base / "config.json").exists():
        shutil.copyfile(write_reference(tmp_path / "model") / "config.json", base / "config.json")
    ours = ChatTokenizer(base, template)
    folder = tmp_path / "text"
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text(ours.jinja())
    text.check_template(folder, ours, [Asked(messages, None) for messages in DIALOGUES])
    other = (folder / "chat_template.jinja").read_text() + "!"
    (folder / "chat_template.jinja").write_text(other)
    with pytest.raises(
        PrefdagError, match="text: for held-out dialogue 0, its chat template gives other tokens than training"
    ):
        text.check_template(folder, ours, [Asked(messages, None) for messages in DIALOGUES])


def test_the_exported_template_gives_the_ids_of_training_with_tools_and_options(tmp_path: Path) -> None:
    base = write_model_tokenizer(tmp_path / "base", "qwen 3")
    shutil.copyfile(write_reference(tmp_path / "model") / "config.json", base / "config.json")
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    calls = [{"type": "function", "function": {"name": "find", "arguments": {"q": "<|im_end|>"}}}]
    dialogue = [
        *user("hi"),
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "1"},
    ]
    ours = ChatTokenizer(base, "chat", {"enable_thinking": False})
    (base / "chat_template.jinja").write_text(ours.jinja())
    text.check_template(base, ours, [Asked(dialogue, tools), Asked(user("hi"), None)])
    with pytest.raises(PrefdagError, match="dialogue 0, its chat template gives other tokens"):
        text.check_template(base, ChatTokenizer(base, "chat", {"enable_thinking": True}), [Asked(user("hi"), None)])


def test_the_exported_template_is_that_of_rows_with_tools_and_of_others(tmp_path: Path) -> None:
    base = write_model_tokenizer(tmp_path / "base", "qwen 3")
    shutil.copyfile(write_reference(tmp_path / "model") / "config.json", base / "config.json")
    (base / "additional_chat_templates").mkdir()
    (base / "chat_template.jinja").rename(base / "additional_chat_templates/tool_use.jinja")
    (base / "chat_template.jinja").write_text(CHATML)
    (tmp_path / "policy").mkdir()
    copy_tokenizer(base, tmp_path / "policy")
    ours = ChatTokenizer(tmp_path / "policy", "chat")
    shutil.rmtree(base / "additional_chat_templates")
    (base / "chat_template.jinja").write_text(ours.jinja())
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    text.check_template(base, ours, [Asked(user("hi"), tools), Asked(user("hi"), None)])
    (base / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(PrefdagError, match="dialogue 1, its chat template gives other tokens"):
        text.check_template(base, ours, [Asked(user("hi"), None), Asked(user("hi"), tools)])


def test_a_template_that_needs_no_change_is_unchanged(tmp_path: Path) -> None:
    base = write_reference(tmp_path)
    assert ChatTokenizer(base, "chat").jinja() == (base / "chat_template.jinja").read_text()


def test_typed_control_tokens_stay_text_on_request(tmp_path: Path) -> None:
    base = write_reference(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    ids = ChatTokenizer(base, "chat").prompt(user("<|im_end|>")).ids
    options = {"add_generation_prompt": True, "return_dict": False}
    assert tokenizer.apply_chat_template(user("<|im_end|>"), sanitize_control_tokens=True, **options) == ids
    assert tokenizer.apply_chat_template(user("<|im_end|>"), **options) != ids


# Images


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    root = write_project(tmp_path_factory.mktemp("images"))
    return resnet.load(root / "models/dpo_image")[0], root


@pytest.fixture(scope="module")
def written(classifier: tuple[torch.nn.Module, Path]) -> Path:
    """The exported classifier. It is made once, since its ONNX graph takes seconds."""
    folder = classifier[1] / "written"
    folder.mkdir()
    image.write_image(classifier[0], SMALL, ["a", "b", "c", "d"], random_images(4), folder)
    return folder


@pytest.fixture
def exported_image(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(written, tmp_path / "image")


def test_onnx_gives_the_logits_for_batches_of_any_size(
    classifier: tuple[torch.nn.Module, Path], exported_image: Path
) -> None:
    session = onnxruntime.InferenceSession(exported_image / "model.onnx")
    for n in (1, 2, 5, 17):
        images = random_images(n)
        with torch.no_grad():
            expected = classifier[0](normalise(images))
        (logits,) = session.run(None, {"images": images.numpy()})
        assert logits.shape == (n, 4)
        assert close(torch.from_numpy(logits), expected)
        assert n == 1 or not close(torch.from_numpy(logits[::-1].copy()), expected)


@pytest.mark.slow
def test_a_second_export_to_onnx_has_the_same_bytes_and_names_no_source_file(
    classifier: tuple[torch.nn.Module, Path], exported_image: Path
) -> None:
    before = sha256(exported_image)
    written = (exported_image / "model.onnx").read_bytes()
    assert b"stack_trace" not in written
    assert b".py" not in written
    image.write_image(classifier[0], SMALL, ["a", "b", "c", "d"], random_images(4), exported_image)
    assert sha256(exported_image) == before


def test_a_damaged_classifier_is_detected(classifier: tuple[torch.nn.Module, Path], exported_image: Path) -> None:
    images = random_images(6)
    assert set(image.check_image(exported_image, classifier[0], images)) == {"model.safetensors", "model.onnx"}
    scale(exported_image / "model.safetensors", "bn1.running_var", 1.0001)
    with pytest.raises(PrefdagError, match=r"image/model\.safetensors: read back, bn1\.running_var is not what"):
        image.check_image(exported_image, classifier[0], images)


@pytest.mark.slow
def test_a_graph_with_other_weights_is_detected(classifier: tuple[torch.nn.Module, Path], exported_image: Path) -> None:
    torch.manual_seed(1)
    other = exported_image.with_name("other")
    other.mkdir()
    image.write_image(resnet.build(SMALL).eval(), SMALL, ["a", "b", "c", "d"], random_images(4), other)
    shutil.copyfile(other / "model.onnx", exported_image / "model.onnx")
    with pytest.raises(PrefdagError, match=r"image/model\.onnx: read back"):
        image.check_image(exported_image, classifier[0], random_images(6))


# The whole export


@pytest.fixture
def graph(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export the graph that is already there: every project here has the same classifier."""
    model = onnx.load(written / "model.onnx")
    monkeypatch.setattr(image, "_graph", lambda model_, images: model)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(write_project(tmp_path / "project"))
    return tmp_path / "project"


@pytest.mark.usefixtures("graph")
def test_export_writes_everything_and_a_second_time_the_same_bytes(project: Path) -> None:
    done = CliRunner().invoke(app, ["export"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *("text", "text_adapter", "image/model.safetensors", "image/model.onnx", "exported to export")
    ]
    assert all("largest deviation" in line for line in lines[:-1])
    files = json.loads((project / "export/export.json").read_text())
    written = {p.relative_to("export").as_posix() for p in Path("export").rglob("*") if p.is_file()}
    assert written == {*files, "export.json"}
    assert {"text/LICENSE", "text/chat_template.jinja", "image/config.json", "text_adapter/README.md"} <= written
    assert files["text/model.safetensors"] == sha256(project / "export/text/model.safetensors")
    assert CliRunner().invoke(app, ["export", "--to", "other"]).exit_code == 0
    assert sha256(project / "other") == sha256(project / "export")
    assert not [path.name for path in project.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.slow
@pytest.mark.usefixtures("graph")
def test_an_earlier_export_stays_until_the_new_one_is_checked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.export(Path("export"), load_params(), lambda line: None)
    before = sha256(project / "export")
    write = image.write_image

    def write_damaged(*arguments: Any) -> None:
        write(*arguments)
        scale(arguments[-1] / "model.safetensors", "fc.1.bias", 2.0)

    monkeypatch.setattr(image, "write_image", write_damaged)
    done = CliRunner().invoke(app, ["export"])
    assert done.exit_code == 1
    assert re.fullmatch(r"error: image/model\.safetensors: read back.*run it again\n", done.stderr)
    assert sha256(project / "export") == before
    assert CliRunner().invoke(app, ["export", "--to", "new"]).exit_code == 1
    assert not (project / "new").exists()
    assert not [path.name for path in project.iterdir() if path.name.endswith(".tmp")]
    monkeypatch.setattr(image, "write_image", write)
    card = project / "reports/model_card.md"
    card.write_text(card.read_text() + "\nNewer.\n")
    record(project)
    assert CliRunner().invoke(app, ["export"]).exit_code == 0
    assert "Newer." in (project / "export/text/README.md").read_text()


@pytest.mark.parametrize("target", ["mine", ".", "models"])
def test_a_folder_that_is_not_an_export_is_never_changed(target: str, project: Path) -> None:
    """More such folders are in test_folder.py."""
    (project / "mine/.git").mkdir(parents=True)
    (project / "mine/.git/HEAD").write_text("a commit")
    (project / "mine/thesis.txt").write_text("years")
    (project / "mine/export.json").write_text("{}")
    before = sha256(project)
    done = CliRunner().invoke(app, ["export", "--to", target])
    assert done.exit_code == 2
    assert re.fullmatch(
        rf"error: {re.escape(target)}: (exists and is not an export|is not a folder for an).*\n", done.stderr
    )
    assert sha256(project) == before


def test_a_target_that_cannot_be_written_is_refused_before_the_work(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More such targets are in test_folder.py."""
    monkeypatch.setattr("prefdag.export.pipeline._text", lambda *_: pytest.fail("worked in vain"))
    done = CliRunner().invoke(app, ["export", "--to", "x" * 300])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "File name too long; choose another folder" in done.stderr


@pytest.mark.parametrize("path", ["models/policy", "reports/model_card.md", "data/validated/pairs.parquet"])
def test_a_missing_input_is_named(path: str, project: Path) -> None:
    (project / path).rename(project / "away")
    done = CliRunner().invoke(app, ["export"])
    assert (done.exit_code, done.stderr) == (2, f"error: {path}: not found; run `dvc repro` first\n")


def test_parameters_that_changed_since_training_are_refused(project: Path) -> None:
    """Otherwise the export would state a template or a beta that the models were not trained with."""
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("beta: 0.1", "beta: 0.3"))
    done = CliRunner().invoke(app, ["export"])
    assert done.exit_code == 2
    assert done.stderr == "error: params.yaml: beta has changed since dpo_text ran; run `dvc repro` first\n"
    (project / "dvc.lock").unlink()
    with pytest.raises(DataError, match=r"dvc\.lock: not found"):
        pipeline.check_current(Path("dvc.lock"), params)


@pytest.mark.slow
@pytest.mark.usefixtures("graph")
@pytest.mark.parametrize(
    ("adapter", "exported", "message"),
    [
        ("prefix", "text_adapter", "text: not exported, since a prefix cannot be merged into weights"),
        ("full", "text", "text_adapter: not exported, since full fine-tuning has no adapter"),
    ],
)
def test_a_part_that_cannot_be_exported_is_reported(
    adapter: str, exported: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_project(tmp_path / "project", adapter))
    lines: list[str] = []
    pipeline.export(Path("export"), load_params(), lines.append)
    assert any(line.startswith(message) for line in lines)
    assert {p.name for p in Path("export").iterdir()} == {exported, "image", "export.json"}


@pytest.mark.slow
@pytest.mark.usefixtures("graph")
def test_readmes_are_hub_cards_whose_code_runs(project: Path) -> None:
    """Each code block runs unchanged in a new process that does not import this project."""
    pipeline.export(Path("export"), load_params(), lambda line: None)
    accuracy = json.loads((project / "reports/image/metrics.json").read_text())["policy"]["accuracy"]
    for name, library, where in (
        ("text", "transformers", "export/text"),
        ("text_adapter", "peft", "export/text_adapter"),
        ("image", "onnx", "export/image"),
    ):
        readme = (project / "export" / name / "README.md").read_text()
        card = ModelCard(readme)
        assert card.data.to_dict()["library_name"] == library
        assert "{{" not in card.text
        (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        done = subprocess.run([sys.executable, "-c", code], cwd=where, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if name == "image":
            assert done.stdout.strip() in {"a", "b", "c", "d"}
            (result,) = card.data.to_dict()["model-index"][0]["results"]
            assert result["metrics"][0]["value"] == accuracy
        else:
            assert "63.5%" in card.text
    assert sha256(Path("models/reference/model.safetensors")) in Path("export/text_adapter/README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("graph")
def test_the_adapter_loads_on_the_plain_reference(project: Path) -> None:
    pipeline.export(Path("export"), load_params(), lambda line: None)
    base: Any = AutoModelForCausalLM.from_pretrained("models/reference")
    loaded = PeftModel.from_pretrained(base, "export/text_adapter").eval()
    policy = lm.load_models(Path("models/reference"), Path("models/policy"), packed=False).policy
    assert close(text.logits(loaded, ROWS), text.logits(policy, ROWS))
    assert np.isfinite(text.logits(loaded, ROWS).numpy()).all()


@pytest.mark.slow
@pytest.mark.usefixtures("graph")
def test_the_adapter_names_its_reference_which_goes_along(project: Path) -> None:
    """Anywhere else, `models/reference` is a repository on the hub, of whoever took that name."""
    pipeline.export(Path("export"), load_params(), lambda line: None)
    digest = sha256(project / "models/reference/model.safetensors")
    config = json.loads((project / "export/text_adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (f"sha256:{digest}", None)
    with pytest.raises(HFValidationError):
        validate_repo_id(config["base_model_name_or_path"])
    assert sha256(project / "export/text_adapter/reference/model.safetensors") == digest
    assert not any(b"models/reference" in path.read_bytes() for path in (project / "export").rglob("*.json"))
    tokenizer: Any = AutoTokenizer.from_pretrained("export/text_adapter/reference")
    policy: Any = AutoTokenizer.from_pretrained("export/text")
    assert tokenizer.apply_chat_template(user("hi")) == policy.apply_chat_template(user("hi"))


@pytest.mark.slow
@pytest.mark.usefixtures("graph")
def test_a_reference_that_is_the_hubs_model_is_named_by_id_and_commit(project: Path) -> None:
    source = HubSource(kind="hub", repo="owner/model", repo_type="model", revision="a" * 40, files=["*.safetensors"])
    params = load_params()
    training = replace(params.sft_ref.training, epochs=0)
    params = replace(
        params,
        download_model=DownloadModel(source=source, adapter=None),
        sft_ref=replace(params.sft_ref, training=training),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "check_current", lambda *arguments: None)
        pipeline.export(Path("export"), params, lambda line: None)
    config = json.loads((project / "export/text_adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/model", "a" * 40)
    assert not (project / "export/text_adapter/reference").exists()
    readme = (project / "export/text_adapter/README.md").read_text()
    assert f'from_pretrained("owner/model", revision="{"a" * 40}", dtype="float32")' in readme
    assert "it was not fine-tuned before DPO" in readme


@pytest.mark.slow
@pytest.mark.usefixtures("graph")
@pytest.mark.parametrize("part", ["text", "text_adapter"])
def test_another_run_starts_from_an_export(part: str, project: Path) -> None:
    """From the whole model, or from the adapter and the reference beside it: with the policy's logits and token ids."""
    pipeline.export(Path("export"), load_params(), lambda line: None)
    base, whole = project / "base", part == "text"
    base.mkdir()
    source = Path("export/text" if whole else "export/text_adapter/reference")
    convert(source, base)
    if not whole:
        merge(Path("export/text_adapter"), source, base)
        with pytest.raises(DataError, match=r"made for a model whose model\.safetensors has the SHA-256 "):
            merge(Path("export/text_adapter"), Path("export/text"), Path("export/text"))
    policy = lm.load_models(Path("models/reference"), Path("models/policy"), packed=False).policy
    assert close(text.logits(lm.load(base, packed=False), ROWS), text.logits(policy, ROWS))
    before, after = (ChatTokenizer(folder, "chat") for folder in (Path("models/reference"), base))
    assert all(before.prompt(each).ids == after.prompt(each).ids for each in DIALOGUES)
    assert before.stop_ids == after.stop_ids
