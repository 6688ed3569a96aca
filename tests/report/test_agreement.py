"""metrics.json, `dvc metrics`, MLflow, the report and the model card agree on every number.

The pipeline's last two stages run on small results. Every number on the page and the card must be in the outputs of the earlier
stages, rounded as it is printed. `test_report.py` tests what each number means.
"""

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import accumulate
from math import exp
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from report_inputs import HEALTH, write_inputs, write_rounds, write_run
from ruamel.yaml import YAML

from prefdag.check_params import load_params
from prefdag.config.params import Params
from prefdag.report.page import card, figure_files
from prefdag.report.page import report_page as page
from prefdag.report.page.numbers import number, percent, points, signed
from prefdag.report.text import examples
from prefdag.runtime.yaml import flatten
from stages import publish, report

pytestmark = pytest.mark.slow

METRICS = publish.METRICS
PUBLISHED = Path("reports/published.html")


@pytest.fixture(scope="module")
def params(root: Path) -> Params:
    return load_params(root / "params.yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, params: Params, root: Path) -> Iterator[Path]:
    """A folder in which `report` and `publish` have run."""
    folder = tmp_path_factory.mktemp("agreement")
    write_inputs(folder)
    write_rounds(folder)
    write_run(folder / "models/rounds/1", np.random.default_rng(1), 9, dpo=True)
    shutil.copytree(folder / "models/policy", folder / "models/dpo_text")
    shutil.copy(root / "dvc.yaml", folder)
    shutil.copytree(root / "dag", folder / "dag", ignore=shutil.ignore_patterns("dvc.lock"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        for path in publish.TABLES:
            if not path.exists():
                path.write_bytes(b"a table")
        report.main(params)
        publish.main()
        yield folder


@pytest.fixture(scope="module")
def run(project: Path) -> Any:
    """The pipeline's run in MLflow: its metrics, its parameters and a function that reads an artifact."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    (run,) = client.search_runs(["1"], "tags.kind = 'pipeline'")
    return SimpleNamespace(
        metrics=run.data.metrics,
        params=run.data.params,
        artifact=lambda path: Path(client.download_artifacts(run.info.run_id, path)).read_bytes(),
    )


def metrics_of(project: Path) -> dict[str, float]:
    """All metrics files in one flat dictionary, with MLflow's keys."""
    tree = {track: json.loads((project / path).read_text("utf-8")) for track, path in METRICS.items()}
    return {key.replace(".", "/"): value for key, value in flatten(tree).items()}


def main_metrics_of(project: Path) -> dict[str, float]:
    """The small file of metrics as one level, keys as MLflow has them."""
    tree = json.loads((project / publish.MAIN_METRICS).read_text("utf-8"))
    return {key.replace(".", "/"): value for key, value in flatten(tree).items()}


# The same metrics everywhere


def test_mlflow_has_every_metric(project: Path, run: Any) -> None:
    curves = tuple(f"{stage}/" for stage in (*publish.CURVES, "dpo_round_1", "rounds"))
    main = {key: value for key, value in main_metrics_of(project).items() if not key.startswith("rounds/")}
    assert {
        key: value for key, value in run.metrics.items() if not key.startswith((*curves, "seconds/"))
    } == main | metrics_of(project)
    assert not any(key.startswith("dpo_round_2/") for key in run.metrics)
    history = pd.read_csv(project / "models/rounds/1/history.csv")
    assert run.metrics["dpo_round_1/loss"] == history["loss"].iloc[-1]


def test_mlflow_has_every_number_of_the_rounds(project: Path, run: Any) -> None:
    """MLflow's latest values are those of the last round that has one; steps are rounds (test_tracking.py)."""
    table = pd.read_csv(project / publish.ROUNDS).set_index("round")
    last = {f"rounds/{name}": values.dropna().iloc[-1] for name, values in table.items() if values.notna().any()}
    assert {key: value for key, value in run.metrics.items() if key.startswith("rounds/")} == last
    assert last["rounds/kl_to_reference"] == 12.75


def test_the_main_metrics_are_those_of_the_evaluations(project: Path) -> None:
    """A dozen numbers, each of which is one of a larger file; and the number of findings."""
    main, metrics = main_metrics_of(project), metrics_of(project)
    names = {
        **{f"text/rewards/accuracies{end}": f"text/heldout/rewards/accuracy{end}" for end in ("", "_low", "_high")},
        "text/kl": "text/heldout/kl",
        "text/perplexity": "text/heldout/policy/perplexity",
        "text/perplexity_before": "text/heldout/reference/perplexity",
        "text/win_rate_implicit": "win_rate/implicit/greedy/win_rate",
        **{f"image/accuracy{end}": f"image/policy/accuracy{end}" for end in ("", "_low", "_high")},
        "image/accuracy_before": "image/reference/accuracy",
        "image/kl": "image/kl",
    }
    findings = {f"{track}/findings": len(HEALTH.findings) if track == "text" else 0 for track in ("text", "image")}
    rounds = {name for name in main if name.startswith("rounds/")}
    assert {name: value for name, value in main.items() if name not in rounds} == {
        name: metrics[key] for name, key in names.items()
    } | findings
    assert len(main) - len(rounds) <= 14
    table = pd.read_csv(project / publish.ROUNDS, index_col="round")
    assert all(main[name] == table[name.split("/")[2]][int(name.split("/")[1])] for name in rounds)


def test_dvc_has_every_metric(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(project / ".site"))
    files = [publish.MAIN_METRICS, *METRICS.values()]
    stage = {"cmd": "true", "metrics": [{str(path): {"cache": False}} for path in files]}
    (project / "dvc.yaml").write_text(json.dumps({"stages": {"evaluate": stage}}))
    subprocess.run((sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"), cwd=project, check=True)
    import dvc.api

    shown = {track: dvc.api.metrics_show(str(path)) for track, path in METRICS.items()}
    assert {key.replace(".", "/"): value for key, value in flatten(shown).items()} == metrics_of(project)
    main = dvc.api.metrics_show(str(publish.MAIN_METRICS))
    assert {key.replace(".", "/"): value for key, value in flatten(main).items()} == main_metrics_of(project)


def test_mlflow_has_the_same_page_card_and_tables(project: Path, run: Any) -> None:
    for path in (PUBLISHED, publish.MODEL_CARD, publish.MAIN_METRICS, *publish.TABLES, *METRICS.values()):
        assert run.artifact(path.as_posix()) == (project / path).read_bytes()


def test_mlflow_has_the_figures_of_the_page(project: Path, run: Any) -> None:
    """Each is an element of the page with its own stylesheet, and a valid SVG document."""
    html = (project / publish.REPORT).read_text("utf-8")
    on_page = re.findall(r"<svg .*?</svg>", html, re.DOTALL)
    names = sorted(path.name for path in (project / publish.FIGURES).iterdir())
    assert len(names) == len(on_page) > 15
    files = [run.artifact(f"reports/figures/{name}").decode() for name in names]
    plain = [re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL) for text in files]
    assert sorted(text.replace(' xmlns="http://www.w3.org/2000/svg"', "").strip() for text in plain) == sorted(on_page)
    for text in files:
        assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        used = set(re.findall(r"var\((--\w+)\)", text))
        assert all(f"{variable}:" in text for variable in used), "a colour that is not defined is drawn black"
    assert figure_files.documents(html) == dict(zip(names, files, strict=True))


# Every number on page and card


class Words(HTMLParser):
    """The text of a page and of its figures' descriptions, without quoted data, hashes, code and versions."""

    SKIPPED: ClassVar = {"style", "code", "pre", "title", "svg", "article"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[tuple[str, bool]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if (label := given.get("aria-label")) and tag != "article":
            self.texts.append(label)
        quoted = "example" in (given.get("class") or "") or (given.get("class") or "") == "mapping"
        if tag not in ("meta", "link", "img", "br"):
            skipped = quoted or (tag in self.SKIPPED and given.get("class") != "verdict")
            self.open.append((tag, skipped))

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not any(skipped for _, skipped in self.open):
            self.texts.append(data)


NUMBER = re.compile(r"(?<![\w.#/:-])[+−]?\d[\d,]*(?:\.\d+)?(?![\w/:]|\.\w)")
# Numbers in the prose: 95% intervals, 50% for chance, runs of 13 words, 0.693 = ln 2, class names 0 to 9, DPO's year.
PROSE = {"95", "50", "13", "0.693", "1", "2", "3", "0", "100", "2023"} | {str(digit) for digit in range(10)}


def numbers(text: str) -> list[str]:
    """The numbers in a text as they are written, including both ends of intervals."""
    return [match.rstrip(",") for match in NUMBER.findall(text.replace("–", " ").replace("\N{NO-BREAK SPACE}", " "))]


def leaves(tree: Any) -> Iterator[float]:
    """Every number in nested mappings and lists."""
    if isinstance(tree, dict):
        yield from (x for value in tree.values() for x in leaves(value))
    elif isinstance(tree, list | tuple):
        yield from (x for value in tree for x in leaves(value))
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield tree
    elif isinstance(tree, str):
        yield from (float(x.replace(",", "").replace("−", "-")) for x in numbers(tree))


def written(value: float) -> set[str]:
    """Every way in which the page or the card may write a number."""
    ways = {f"{value:g}", f"{value:+g}", str(value), percent(value)[:-1], points(value)}
    ways |= {signed(value, digits) for digits in (3, 4)} | {number(float(value), d) for d in (1, 2, 3, 4)}
    if float(value).is_integer():
        ways.add(number(int(value)))
    return {way.replace("-", "−") for way in ways}


def artefacts(folder: Path, params: Params) -> set[str]:
    """Every number that the page and the card may show, in every way of writing it, from the earlier stages' outputs.

    Of tables with one row per step, pair or image, only the numbers that are shown: they contain almost any share.
    """
    files = [p for p in folder.rglob("*") if p.relative_to(folder).parts[0] in ("reports", "models", "data")]
    files = [p for p in files if "figures" not in p.parts and p.name not in ("model_card.md", "index.html")]
    values: list[float] = [*leaves(flatten(params))]
    for path in files:
        if path.suffix == ".json":
            values += leaves(json.loads(path.read_text("utf-8")))
        elif path.suffix in (".csv", ".parquet") and path.stat().st_size > 20:
            table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
            values.append(len(table))
            if path.name in ("history.csv", "validation.csv"):
                table = table.iloc[[0, -1]]
            elif path.name == "predictions.csv":
                values += predictions_shown(table, params.report.image_examples)
                continue
            elif path.name == "tokens.parquet":
                top = float(np.quantile(np.abs(np.concatenate(table["logratios"].to_list())), examples.WITHIN))
                values += [sign * top * level / 4 for level in range(5) for sign in (1, -1)]
                continue
            elif path.name == "pairs.csv":
                values += margins_shown(table)
                continue
            cells = table.select_dtypes("number").to_numpy().ravel().tolist()
            values += [value for value in cells if value == value]
    image = json.loads((folder / METRICS["image"]).read_text("utf-8"))
    right = round(image["n_test"] * image["reference"]["accuracy"])
    splits = pd.read_parquet(folder / "data/image_pairs/pairs.parquet")["split"].value_counts()
    changes = pd.read_csv(folder / "reports/validation/formatted/changes.csv")
    values += [right, image["n_test"] - right, *splits, *changes.groupby(["change", "column"]).size()]
    values += [params.report.text_examples, len(flatten(params))]
    return {way for value in values for way in written(value)} | PROSE


def predictions_shown(table: pd.DataFrame, count: int) -> Iterator[float]:
    """The numbers that the page shows from predictions.csv: counts, and the probabilities below pictures."""
    changed = table[table["reference"] != table["policy"]]
    yield from range(max(len(changed), count) + 1)
    yield from changed[["reference_probability", "policy_probability"]].to_numpy().ravel().tolist()
    yield from table.groupby("label").size()
    yield from table.groupby(["label", "policy"]).size()


def margins_shown(pairs: pd.DataFrame) -> Iterator[float]:
    """The numbers in the figures of held-out pairs: counts by sign, mean rewards, and the calibration in six bins."""
    margin = pairs["margin"]
    yield from (int((margin > 0).sum()), int((margin < 0).sum()))
    yield from (float(pairs[f"reward_{side}"].mean()) for side in ("chosen", "rejected"))
    ordered = sorted(margin, key=abs)
    sizes = [len(ordered) // 6 + (i < len(ordered) % 6) for i in range(6)]
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        part = ordered[end - size : end]
        yield from (sum(1 / (1 + exp(-abs(m))) for m in part) / size, sum(m > 0 for m in part) / size)


def untraced(text: str, known: set[str]) -> list[str]:
    return sorted({number for number in numbers(text) if number not in known and number.lstrip("+") not in known})


def card_words(markdown: str) -> str:
    """The card without its front matter, its code and its hashes."""
    body = markdown.split("---\n", 2)[2]
    return re.sub(r"```.*?```|`[^`]*`|\(arXiv[^)]*\)", "", body, flags=re.DOTALL)


def test_every_number_on_page_and_card_is_in_the_artefacts(project: Path, params: Params) -> None:
    known = artefacts(project, params)
    text = " ".join(Words((project / publish.REPORT).read_text("utf-8")).texts)
    assert len(numbers(text)) > 300
    assert untraced(text, known) == []
    text = card_words((project / publish.MODEL_CARD).read_text("utf-8"))
    assert len(numbers(text)) > 60
    assert untraced(text, known) == []


def test_the_front_matter_of_the_card_has_the_metrics(project: Path) -> None:
    matter = YAML(typ="safe").load((project / publish.MODEL_CARD).read_text("utf-8").split("---\n", 2)[1])
    (result,) = matter["model-index"][0]["results"]
    heldout = json.loads((project / METRICS["text"]).read_text("utf-8"))["heldout"]
    values = [metric["value"] for metric in result["metrics"]]
    assert values == [heldout["rewards"]["accuracy"], heldout["policy"]["perplexity"]]


@pytest.mark.parametrize(
    "key",
    [
        "heldout.rewards.accuracy",
        "heldout.rewards.margin_low",
        "heldout.kl",
        "truthfulqa.policy.perplexity",
        "winogrande.n_tokens",
    ],
)
def test_one_wrong_number_on_the_card_is_detected(
    project: Path, params: Params, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above fails for a card with one number that is not from metrics.json."""
    monkeypatch.chdir(project)
    known = artefacts(project, params)
    render = card.render

    def with_wrong_number(results: Any, params: Params) -> str:
        metrics = json.loads(json.dumps(results.text.metrics))
        *parents, last = key.split(".")
        node = metrics
        for parent in parents:
            node = node[parent]
        node[last] = type(node[last])(node[last] * 1.0437)
        return render(replace(results, text=replace(results.text, metrics=metrics)), params)

    monkeypatch.setattr(card, "render", with_wrong_number)
    monkeypatch.setattr(page, "render", lambda *_: "")
    monkeypatch.setattr(report, "FIGURES", Path("elsewhere"))
    monkeypatch.setattr(report, "PAGE", Path("elsewhere.html"))
    monkeypatch.setattr(report, "CARD", Path("elsewhere.md"))
    report.main(params)
    assert untraced(card_words(Path("elsewhere.md").read_text("utf-8")), known)


def test_a_number_rounded_in_another_way_is_detected(project: Path, params: Params) -> None:
    """A calibration error with two decimals instead of one."""
    known = artefacts(project, params)
    html = (project / publish.REPORT).read_text("utf-8")
    image = json.loads((project / METRICS["image"]).read_text("utf-8"))
    shown = percent(image["policy"]["calibration_error"])
    assert f"Policy: calibration error {shown}" in html
    wrong = html.replace(f"Policy: calibration error {shown}", "Policy: calibration error 4.37%")
    assert untraced(" ".join(Words(wrong).texts), known) == ["4.37"]
