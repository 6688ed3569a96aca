"""The README.md of each exported folder: a model card, and how to load the folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from prefdag.report.image.sentences import conclusion
from prefdag.report.page.card import dataset_id, licence
from prefdag.report.page.environment import environment
from prefdag.report.page.numbers import Estimate
from prefdag.report.page.provenance import source_name

if TYPE_CHECKING:
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
This folder holds the adapter that DPO trained. It works only with the pipeline's reference, `{reference}`, whose
model.safetensors has the SHA-256 `{sha256}`. `base_model_name_or_path` is its path in the repository.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{reference}"), "{folder}")
```
"""


def policy_card(card: str, adapter_kind: str, template_options: Mapping[str, Any]) -> str:
    """The model card of the policy as a whole model.

    Args:
        template_options: the variables of the chat template in training, its defaults in this folder.
    """
    options = ", ".join(f"`{name}={value!r}`" for name, value in template_options.items())
    how = "with all weights trained" if adapter_kind == "full" else "with its adapter merged into the reference"
    return _with_note(
        card,
        "transformers",
        WHOLE.format(how=how, options=f" By default it has the options of training: {options}." if options else ""),
    )


def adapter_card(card: str, reference: Path, sha256: str, folder: str) -> str:
    """The model card of the adapter alone."""
    return _with_note(card, "peft", ADAPTER.format(reference=reference.as_posix(), sha256=sha256, folder=folder))


def _with_note(card: str, library: str, note: str) -> str:
    """Set the card's library, and insert the note below its title."""
    new: Any = ModelCard(card)
    new.data.library_name = library
    title, _, rest = new.text.lstrip("\n").partition("\n")
    new.text = f"\n{title}\n\n{note}{rest}"
    return str(new)


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
