"""What stands in the README.md of an exported folder: the pipeline's model card, and how this folder is loaded."""

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
This folder is the whole policy, {how}, in the layout of transformers; the reference is not needed. Its chat template gives
the token ids of training.

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
This folder is what DPO trained, alone. It works on one base only: the pipeline's reference, `{reference}`, whose
model.safetensors has the SHA-256 `{sha256}`; `base_model_name_or_path` is its place in the repository.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{reference}"), "{folder}")
```
"""


def whole(card: str, adapter_kind: str) -> str:
    """The model card of the policy as a whole model."""
    how = "every weight of it trained" if adapter_kind == "full" else "its adapter merged into the reference"
    return _with_note(card, "transformers", WHOLE.format(how=how))


def adapter(card: str, reference: Path, sha256: str, folder: str) -> str:
    """The model card of the adapter alone."""
    return _with_note(card, "peft", ADAPTER.format(reference=reference.as_posix(), sha256=sha256, folder=folder))


def _with_note(card: str, library: str, note: str) -> str:
    """The card with its library, and the note below its title."""
    made: Any = ModelCard(card)
    made.data.library_name = library
    title, _, rest = made.text.lstrip("\n").partition("\n")
    made.text = f"\n{title}\n\n{note}{rest}"
    return str(made)


def image(metrics: Mapping[str, Any], config: Mapping[str, Any], params: "Params") -> str:
    """The model card of the classifier.

    Args:
        metrics: as evaluate_image wrote them.
        config: as `write_image` wrote it.
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
