"""The cards of exported folders, made from the report's own model card."""

import re
from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from paths import ROOT
from report_inputs import write_inputs

from prefdag.check_params import load_params
from prefdag.config.download_model import DownloadModel
from prefdag.config.params import Params
from prefdag.config.sources import HubSource
from prefdag.export.cards import AdapterBase, adapter_card, pinned_model, policy_card
from stages import report


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory, params: Params) -> str:
    """The card of a LoRA run."""
    folder = tmp_path_factory.mktemp("cards")
    write_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report.main(params)
    return (folder / "reports/model_card.md").read_text("utf-8")


def text_of(card: str) -> str:
    return str(ModelCard(card).text).strip()


@pytest.mark.slow
def test_the_merged_models_card_is_about_the_merged_model(card: str, params: Params) -> None:
    merged = policy_card(card, params)
    data: dict[str, Any] = ModelCard(merged).data.to_dict()
    assert (data["library_name"], data["base_model_relation"]) == ("transformers", "finetune")
    assert data["tags"] == ["dpo", "preference-optimization", "prefdag"]
    text = text_of(merged)
    assert text.startswith("# A language model trained with direct preference optimization (β = 0.1)\n")
    assert "holds the whole policy, with its adapter merged into the reference" in text
    assert "work only with the reference" not in text
    assert "prefdag export" not in text
    assert "peft" not in text.replace("peft 0.", "")  # the version that trained it
    kept = [line for line in text_of(card).splitlines() if line.startswith(("## ", "| ", "- "))]
    assert [line for line in kept if line not in text] == ["## How to use it"]


@pytest.mark.slow
def test_the_adapters_card_names_its_reference(card: str, params: Params) -> None:
    own = adapter_card(card, params, AdapterBase.of(params, "ab" * 32))
    data: dict[str, Any] = ModelCard(own).data.to_dict()
    assert (data["library_name"], data["base_model_relation"]) == ("peft", "finetune")
    assert "lora" in data["tags"]
    text = " ".join(text_of(own).split())
    assert text.startswith("# A LoRA adapter trained with")
    assert (
        f"works only with the reference in the folder `reference`, whose model.safetensors has the SHA-256 `{'ab' * 32}`"
        in text
    )
    assert params.download_model.source.sha256 in text  # type: ignore[union-attr]
    assert "models/reference" not in own.partition("| Artefact |")[0], "elsewhere that is a repository of the hub"
    (code,) = re.findall(r"```python\n(.*?)```", own, re.DOTALL)
    assert 'from_pretrained("./reference", dtype="float32")' in code


def test_a_merged_adapter_is_no_model_of_the_hub(params: Params) -> None:
    """With it, even the reference of a run without fine-tuning is not the hub's model."""
    source = HubSource(kind="hub", repo="owner/model", repo_type="model", revision="a" * 40, files=["*.safetensors"])
    unchanged = replace(params.sft_ref, training=replace(params.sft_ref.training, epochs=0))
    plain = replace(params, download_model=DownloadModel(source=source, adapter=None), sft_ref=unchanged)
    assert AdapterBase.of(plain, "ab" * 32).revision == "a" * 40
    model = DownloadModel(source=source, adapter=replace(source, repo="owner/adapter"))
    merged = replace(plain, download_model=model)
    assert AdapterBase.of(merged, "ab" * 32) == AdapterBase(f"sha256:{'ab' * 32}", None, "ab" * 32)
    assert pinned_model(model) == (
        f"`owner/model` at revision `{'a' * 40}`, with the adapter `owner/adapter` at revision `{'a' * 40}` merged into it"
    )


@pytest.mark.slow
def test_a_fully_trained_model_keeps_its_title(card: str, params: Params) -> None:
    from prefdag.config.adapter import Full

    full = replace(params, dpo_text=replace(params.dpo_text, adapter=Full(kind="full")))
    new = policy_card(card.replace("# A LoRA adapter trained", "# A language model trained"), full)
    assert text_of(new).startswith("# A language model trained with")
    assert "with all weights trained" in new
