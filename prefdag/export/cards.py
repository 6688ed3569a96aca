"""The README.md of each exported folder: a model card, and how to load the folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from prefdag.config.sources import DvcSource, HubSource, PathSource, PypiSource, Source, UrlSource
from prefdag.report.image.sentences import conclusion
from prefdag.report.page import settings
from prefdag.report.page.card import dataset_id, licence
from prefdag.report.page.environment import environment
from prefdag.report.page.numbers import Estimate
from prefdag.report.page.provenance import source_name

if TYPE_CHECKING:
    from prefdag.config.download_model import DownloadModel
    from prefdag.config.params import Params

WHOLE = """\
This folder holds the whole policy, {how}. It loads with transformers and does not need the reference. Its chat template
gives the same token ids as in training.{options}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
ids = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "What is a primary colour?"}}],
    add_generation_prompt=True,
    sanitize_control_tokens=True,
    return_tensors="pt",
)
print(tokenizer.decode(model.generate(**ids, do_sample=False, max_new_tokens=32)[0]))
```
"""
ADAPTER = """\
This folder holds the adapter that DPO trained. {base}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({load}, dtype="float32"), ".")
```
"""
OWN_REFERENCE = """\
It works only with the reference in the folder `reference`, whose model.safetensors has the SHA-256 `{sha256}`.
The reference is {reference}; the base model is {base}. `base_model_name_or_path` names the
reference by its hash, because it is on no hub."""
HUB_REFERENCE = """\
It works only with `{repo}` at revision `{revision}`, which is the reference of this run: it was not fine-tuned before DPO. In
this run, its model.safetensors has the SHA-256 `{sha256}`."""
USE = "How to use it"  # a section of the card about what `prefdag export` writes
ONLY_WITH = "The trained weights work only with the reference"  # a paragraph of the card


@dataclass(frozen=True)
class AdapterBase:
    """The model that an adapter belongs to: how the adapter's configuration names it, and how to load it.

    `name` is a hub id, with the commit in `revision`; or "sha256:" and the hash of its weights, which is no valid id.
    """

    name: str
    revision: str | None
    sha256: str

    @classmethod
    def of(cls, params: "Params", sha256: str) -> "AdapterBase":
        """The reference whose model.safetensors has this hash. It is the hub's model only if nothing was changed."""
        source, adapter = params.download_model.source, params.download_model.adapter
        if isinstance(source, HubSource) and adapter is None and params.sft_ref.training.epochs == 0:
            return cls(source.repo, source.revision, sha256)
        return cls(f"sha256:{sha256}", None, sha256)


def policy_card(card: str, params: "Params") -> str:
    """The model card of the policy as a whole model."""
    full = params.dpo_text.adapter.kind == "full"
    how = "with all weights trained" if full else "with its adapter merged into the reference"
    options = ", ".join(f"`{name}={value!r}`" for name, value in params.format_pairs.template_options.items())
    note = f" By default it has the options of training: {options}." if options else ""
    new = _with_note(card, "transformers", WHOLE.format(how=how, options=note))
    if not full:
        new.text = re.sub(r"(?m)^# .*? trained with ", "# A language model trained with ", new.text, count=1)
    new.text = re.sub(rf"(?ms)^{ONLY_WITH}.*?\n\n", "", new.text)
    new.data.tags = [tag for tag in new.data.tags or [] if tag != params.dpo_text.adapter.kind]
    if new.data.base_model:
        new.data.base_model_relation = "finetune"
    return str(new)


def adapter_card(card: str, params: "Params", reference: AdapterBase) -> str:
    """The model card of the adapter alone."""
    model, fine_tuned = params.download_model, settings.supervised(params.sft_ref)
    if reference.revision:
        base = HUB_REFERENCE.format(repo=reference.name, revision=reference.revision, sha256=reference.sha256)
        load = f'"{reference.name}", revision="{reference.revision}"'
    else:
        base = OWN_REFERENCE.format(sha256=reference.sha256, reference=fine_tuned, base=pinned_model(model))
        load = '"./reference"'
    new = _with_note(card, "peft", ADAPTER.format(base=base, load=load))
    if new.data.base_model:  # a hub that took it for the adapter's own base would load the adapter on the wrong weights
        new.data.base_model_relation = "adapter" if reference.revision else "finetune"
    return str(new)


def pinned_model(model: "DownloadModel") -> str:
    """The model that everything starts from, with its pins."""
    name = pinned_name(model.source)
    return name if model.adapter is None else f"{name}, with the adapter {pinned_name(model.adapter)} merged into it"


def pinned_name(source: Source) -> str:
    """A source with its pin: hub id and commit, or hash."""
    match source:
        case HubSource():
            return f"`{source.repo}` at revision `{source.revision}`"
        case PypiSource():
            return f"{source_name(source)}, from `{source.file}` with the SHA-256 `{source.sha256}`"
        case PathSource() | UrlSource():
            return f"{source_name(source)} with the SHA-256 `{source.sha256}`"
        case DvcSource():
            return f"{source_name(source)} at revision `{source.revision}`"


def _with_note(card: str, library: str, note: str) -> Any:
    """The card for a library, with the note in place of its section on how to use it, below the title."""
    new: Any = ModelCard(card)
    new.data.library_name = library
    title, _, rest = new.text.lstrip("\n").partition("\n")
    rest = re.sub(rf"(?ms)^## {USE}\n.*?(?=^## )", "", rest)
    new.text = f"\n{title}\n\n{note}{rest}"
    return new


def image_card(metrics: Mapping[str, Any], config: Mapping[str, Any], params: "Params") -> str:
    """The model card of the classifier.

    Args:
        metrics: from evaluate_image.
        config: from `write_image`.
    """
    source = params.download_images.source
    accuracy = Estimate.of(metrics["policy"], "accuracy")
    data = ModelCardData(
        model_name=f"dpo-image-beta-{params.beta}",
        license=licence(source),
        pipeline_tag="image-classification",
        library_name="onnx",
        tags=["dpo", "onnx", params.resnet_warmup.arch, "preference-optimization", "prefdag"],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset_id(source),
                dataset_name="held-out images",
                dataset_split="test",
                metric_type="accuracy",
                metric_name="Accuracy",
                metric_value=accuracy.value,
            )
        ],
    )
    return (
        environment(autoescape=False)
        .get_template("image_card.md.j2")
        .render(
            front_matter=data.to_yaml(),
            params=params,
            config=config,
            accuracy=accuracy,
            n_test=metrics["n_test"],
            sentences=conclusion(metrics).sentences,
            source=source_name(source),
            licence=licence(source),
            pretrained=None if params.download_resnet.source is None else source_name(params.download_resnet.source),
        )
    )
