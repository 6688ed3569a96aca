"""The comparison of two experiments: differences by hand, rows that differ, and the conclusions on the page."""

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from compared_runs import CLASSES, IDS, OUTS, Kept, experiment
from paths import HELPERS
from report_inputs import HOSTILE, Page
from scipy import stats
from typer.testing import CliRunner

from prefdag.cli import app
from prefdag.lifecycle.errors import DataError
from prefdag.report.compare import comparison, differences, experiments
from prefdag.report.compare.experiments import Experiment, Files
from prefdag.report.compare.margins import margin_scale
from prefdag.report.page.results import Histories
from prefdag.runtime.yaml import flatten


@pytest.fixture(scope="module")
def runs() -> tuple[Experiment, Experiment]:
    return experiment("one", 1), experiment("workspace", 2, beta=0.3)


def by_key(first: Experiment, second: Experiment) -> dict[str, differences.Difference]:
    return {f"{d.measure.track}.{d.measure.key}": d for d in differences.differences(first, second)}


@pytest.mark.slow
def test_the_rows_of_a_measure_give_its_metric(runs: tuple[Experiment, Experiment]) -> None:
    """sum(value) / sum(weight) is the metric. A measure with other rows would have a wrong interval."""
    counted = 0
    for run in runs:
        for measure in differences.measures():
            if measure.rows and (value := flatten(run.metrics[measure.track]).get(measure.key)) is not None:
                rows = measure.rows(run)
                assert rows is not None
                assert rows["value"].sum() / rows["weight"].sum() == pytest.approx(value, abs=1e-9), measure.key
                counted += 1
    assert counted == 2 * 13  # runs, measures with rows


@pytest.mark.slow
def test_differences_are_those_of_the_metrics(runs: tuple[Experiment, Experiment]) -> None:
    metrics = [flatten(run.metrics) for run in runs]
    for key, difference in by_key(*runs).items():
        assert (difference.first, difference.second) == (metrics[0][key], metrics[1][key])
        assert difference.value == pytest.approx(metrics[1][key] - metrics[0][key])
        if difference.estimate:
            assert difference.estimate.value == pytest.approx(difference.value, abs=1e-9)
            assert difference.estimate.low <= difference.estimate.value <= difference.estimate.high


@pytest.mark.slow
def test_ranking_by_hand(runs: tuple[Experiment, Experiment]) -> None:
    """Of 40 pairs, only B ranks 12 correctly and only A ranks 3."""
    a, b = np.repeat([1.0, 1.0, -1.0, -1.0], (10, 3, 12, 15)), np.repeat([1.0, -1.0, 1.0, -1.0], (10, 3, 12, 15))
    first, second = (replace(run, pairs=run.pairs.assign(margin=m)) for run, m in zip(runs, (a, b), strict=True))
    accuracy = by_key(first, second)["text.heldout.rewards.accuracy"]
    assert accuracy.result is not None
    assert accuracy.result["difference"] == pytest.approx((12 - 3) / 40)
    assert (accuracy.result["alone_right"], accuracy.result["other_alone_right"]) == (12, 3)
    # McNemar's exact test: twice the chance of at most 3 heads in 12 + 3 tosses.
    assert accuracy.result["p"] == pytest.approx(2 * sum(math.comb(15, heads) for heads in range(3 + 1)) / 2**15)
    assert accuracy.tone == "better"
    shuffled = replace(second, pairs=second.pairs.sample(frac=1, random_state=0))
    assert by_key(first, shuffled)["text.heldout.rewards.accuracy"] == accuracy  # rows are matched by id
    swapped = by_key(second, first)["text.heldout.rewards.accuracy"]
    assert swapped.result is not None
    assert swapped.result["difference_low"] == pytest.approx(-accuracy.result["difference_high"], abs=1e-6)


def test_pairing_removes_the_variation_between_rows(runs: tuple[Experiment, Experiment]) -> None:
    """B is 0.1 nats per token below A in every row: the interval has no width, although rows differ by nats."""
    first, _ = runs
    rows = first.rows.assign(policy_logps=first.rows["policy_logps"] + 0.1 * first.rows["n_tokens"])
    metrics = json.loads(json.dumps(first.metrics))
    metrics["text"]["heldout"]["policy"]["cross_entropy"] -= 0.1
    cross_entropy = by_key(first, replace(first, rows=rows, metrics=metrics))["text.heldout.policy.cross_entropy"]
    assert cross_entropy.estimate is not None
    assert (cross_entropy.estimate.low, cross_entropy.estimate.high) == pytest.approx((-0.1, -0.1), abs=1e-9)
    assert cross_entropy.tone == "worse"  # B is below A


@pytest.mark.slow
def test_other_rows_are_not_compared(runs: tuple[Experiment, Experiment]) -> None:
    first, second = runs
    others = replace(
        second,
        pairs=second.pairs.assign(id=[*IDS[1:], "f" * 16]),
        rows=second.rows.assign(n_tokens=second.rows["n_tokens"] + (second.rows["set"] == "heldout")),
        outputs={**second.outputs, "data/validated/images": "1" * 32},
    )
    by_measure = by_key(first, others)
    for key in ("text.heldout.rewards.accuracy", "text.heldout.policy.cross_entropy", "image.policy.accuracy"):
        assert (by_measure[key].result, by_measure[key].note) == (None, differences.OTHER_ROWS)
    assert by_measure["text.truthfulqa.policy.cross_entropy"].result  # these rows are the same
    assert comparison.examples(first, others, 4) is None
    assert comparison.pictures(first, others, 4) is None
    table = differences.differences(first, others)
    for track in ("text", "image"):
        verdict = comparison.verdict(track, table, first, others)  # type: ignore[arg-type]
        assert verdict.headline == "Not comparable: A and B were evaluated on different rows."
    text = Page(comparison.render(first, others, table)).text
    assert "Not comparable: A and B have different test images." in text
    evals = replace(second, outputs={**second.outputs, "data/raw/evals": "1" * 32})
    assert by_key(first, evals)["text.choices.truthfulqa.policy.mc1"].note == differences.OTHER_ROWS


def test_soft_labels_have_no_exact_test(runs: tuple[Experiment, Experiment]) -> None:
    soft = [replace(run, pairs=run.pairs.assign(preference=0.8)) for run in runs]
    accuracy = by_key(*soft)["text.heldout.rewards.accuracy"]
    assert accuracy.result is not None
    assert "p" not in accuracy.result
    assert accuracy.n == 40


@pytest.mark.slow
def test_single_responses_and_missing_keys_have_no_interval(runs: tuple[Experiment, Experiment]) -> None:
    first, second = runs
    single = [replace(run, pairs=run.pairs.assign(margin=np.nan)) for run in runs]
    assert by_key(*single)["text.heldout.rewards.accuracy"].note == differences.NO_ROWS
    verdict = comparison.verdict("text", differences.differences(*single), *single)
    assert verdict.tone == "unclear"
    older = json.loads(json.dumps(second.metrics))
    del older["text"]["choices"], older["image"]["policy"]["calibration_error"], older["text"]["heldout"]["kl"]
    by_measure = by_key(first, replace(second, metrics=older))
    assert by_measure["text.choices.truthfulqa.policy.mc1"].note == "missing in B"
    assert by_measure["text.heldout.kl"].value is None
    table = differences.differences(first, replace(second, metrics=older))
    assert "KL to the reference, nats per token: missing in B." in comparison.verdict("text", table, *runs).sentences
    assert Page(comparison.render(first, replace(second, metrics=older), table)).open == []
    both = by_key(replace(first, metrics=older), replace(second, metrics=older))
    assert "text.heldout.kl" not in both


@pytest.mark.slow
def test_a_run_compared_with_itself_has_no_differences(runs: tuple[Experiment, Experiment]) -> None:
    first, _ = runs
    again = replace(first, name="again")
    table = differences.differences(first, again)
    assert all(row.value == 0 and row.tone == "unclear" for row in table)
    text = Page(comparison.render(first, again, table)).text
    for phrase in (
        "Their parameters are the same.",
        "A and B rank the same unseen preferences correctly.",
        "The policies of A and B are identical, byte for byte.",
        "None: A and B rank the same pairs correctly.",
        "None: A and B predict the same class for every test image.",
        "All 0 metrics that differ",
    ):
        assert phrase in text


@pytest.mark.parametrize(
    ("alone", "other", "tone", "headline"),
    [
        (12, 3, "better", "B ranks unseen preferences better than A."),
        (7, 4, "unclear", "No significant difference between A and B in ranking unseen preferences."),
        (3, 12, "worse", "B ranks unseen preferences worse than A."),
    ],
)
def test_the_verdict_follows_interval_and_test(
    runs: tuple[Experiment, Experiment], alone: int, other: int, tone: str, headline: str
) -> None:
    rest = 40 - alone - other
    a, b = np.repeat([1.0, -1.0, 1.0], (rest, alone, other)), np.repeat([1.0, 1.0, -1.0], (rest, alone, other))
    first, second = (replace(run, pairs=run.pairs.assign(margin=m)) for run, m in zip(runs, (a, b), strict=True))
    verdict = comparison.verdict("text", differences.differences(first, second), first, second)
    assert (verdict.tone, verdict.headline) == (tone, headline)
    assert f"B alone is right on {alone}, A alone on {other}." in verdict.sentences[0]
    assert ("No significant difference." in verdict.sentences[0]) == (tone == "unclear")


@pytest.mark.slow
def test_the_page_shows_what_differs(runs: tuple[Experiment, Experiment]) -> None:
    table = differences.differences(*runs)
    html = comparison.render(*runs, table)
    page = Page(html)
    assert page.open == []
    assert html == comparison.render(*runs, table)
    for phrase in ("A is one , B is workspace", "beta 0.1 → 0.3", "They set the scale of rewards and losses"):
        assert phrase in page.text
    for row in comparison.table_rows("text", table) + comparison.table_rows("image", table):
        cells = [row["title"], *row["values"], row["difference"], row["span"], row["p"]]
        assert " ".join(" ".join(filter(None, cells)).split()) in page.text
    assert "<script>alert(1)" not in html
    assert HOSTILE in page.text
    assert all((a.get("src") or a.get("href") or "#").startswith(("#", "data:")) for _, a in page.tags)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 6
    assert "A: training 0." in html


def test_examples_are_pairs_whose_ranking_changed(runs: tuple[Experiment, Experiment]) -> None:
    first, second = runs
    groups = comparison.examples(first, second, 4)
    assert groups
    right = [dict(zip(run.pairs["id"], run.pairs["margin"] > 0, strict=True)) for run in runs]
    total = 0
    for group in groups:
        by_b = group["title"] == "Ranked correctly only by B"
        moved = [abs(item["margin_b"] / 0.3 - item["margin_a"] / 0.1) for item in group["items"]]  # by the betas
        assert moved == sorted(moved, reverse=True)
        assert len(moved) == min(2, group["total"])
        assert all((right[0][i["id"]], right[1][i["id"]]) == (not by_b, by_b) for i in group["items"])
        total += group["total"]
    assert total == sum(right[0][i] != right[1][i] for i in IDS)


def test_pictures_are_images_whose_class_changed(runs: tuple[Experiment, Experiment]) -> None:
    groups = comparison.pictures(*runs, 6)
    assert groups
    a, b = (run.predictions["policy"] for run in runs)
    assert sum(group["total"] for group in groups) == (a != b).sum()
    assert {item["label"] for group in groups for item in group["items"]} <= set(CLASSES)


@pytest.mark.slow
def test_curves_of_two_runs_are_matched_by_step() -> None:
    """Runs of different lengths, one of them without a margin."""
    first = Histories(pd.DataFrame({"step": [1, 2], "loss": [0.7, 0.6]}), pd.DataFrame({"step": [0], "loss": [0.69]}))
    second = Histories(
        pd.DataFrame({"step": [1, 2, 3], "loss": [0.7, 0.5, 0.4], "rewards/margin": 0.2}),
        pd.DataFrame({"step": [0, 3], "loss": [0.69, 0.4]}),
    )
    overlaid = comparison.overlaid(first, second, "loss")
    assert overlaid.history["step"].tolist() == [1, 2, 3]
    assert overlaid.history["B"].tolist() == [0.7, 0.5, 0.4]
    assert overlaid.history["A"].isna().tolist() == [False, False, True]
    panels = comparison.curves("text", first, second, margin_scale({"beta": 0.1}, {"beta": 0.1}))
    assert [panel.title for panel in panels] == ["Loss", "Reward margin"]
    assert "A: training 0.700 to 0.600, validation 0.690 to 0.690; B: training 0.700 to 0.400" in panels[0].svg
    assert "A:" not in re.findall('aria-label="([^"]*)"', panels[1].svg)[0]


def margins(panels: list[Any]) -> tuple[str, str]:
    """The title of the figure of margins, and what it says to a screen reader."""
    (drawn,) = (panel for panel in panels if "margin" in panel.title)
    return drawn.title, re.findall('aria-label="([^"]*)"', drawn.svg)[0]


def test_margins_of_different_betas_are_drawn_as_log_ratios() -> None:
    """The same policy under twice the beta has twice the margin, and the same log-ratios."""

    def run(beta: float) -> Histories:
        frame = pd.DataFrame({"step": [0, 1], "rewards/margin": [0.0, 3.0 * beta]})
        return Histories(frame, frame)

    same = {"beta": 0.1, "loss": "sigmoid", "loss_options.f_divergence": None}
    title, curve = margins(comparison.curves("text", run(0.1), run(0.1), margin_scale(same, same)))
    assert title == "Reward margin"
    assert "A: training 0.000 to 0.300" in curve
    title, curve = margins(comparison.curves("text", run(0.1), run(0.2), margin_scale(same, same | {"beta": 0.2})))
    assert title == "Reward margin / β: difference of the log-ratios, nats"
    assert "A: training 0.000 to 3.00" in curve
    assert "B: training 0.000 to 3.00" in curve
    other = {"beta": 0.2, "loss": "sigmoid", "loss_options.f_divergence": "js"}
    assert margin_scale(same, other) == ((0.1, 0.2), "Reward margin / β")  # another function of the ratio
    sums = [{"beta": beta, "loss.sigmoid": 0.8, "loss.sft": 0.2} for beta in (0.1, 0.2)]
    assert margin_scale(*sums).betas == (0.1, 0.2)
    odds = {"beta": 0.2, "loss": "orpo"}
    assert margin_scale(odds | {"beta": 0.1}, odds) == ((1.0, 1.0), "Reward margin")  # they have no beta in them
    assert margin_scale(same, odds) == ((0.1, 1.0), "Reward margin / β")


@pytest.mark.slow
def test_rewards_on_other_scales_get_no_conclusion(runs: tuple[Experiment, Experiment]) -> None:
    first, second = runs  # of different betas
    for key in ("text.heldout.rewards.margin", "text.heldout.rewards.chosen", "image.rewards.margin"):
        assert by_key(first, second)[key].note == differences.OTHER_SCALE
    alike = replace(second, params=second.params | {"beta": first.params["beta"]})
    assert by_key(first, alike)["text.heldout.rewards.margin"].result is not None
    for change in ({"loss": "ipo"}, {"loss_options.label_smoothing": 0.1}):
        other = replace(alike, params=alike.params | change)
        assert by_key(first, other)["text.heldout.rewards.margin"].note == differences.OTHER_SCALE
    assert by_key(first, second)["text.heldout.rewards.accuracy"].result is not None


def test_changed_keys_are_shown_with_both_values() -> None:
    first = {"beta": 0.1, "loss": "sigmoid", "old": None, "same": 1, "flip": False}
    second = {"flip": True, "beta": 0.3, "loss": {"sigmoid": 1.0}, "same": 1, "new": 1.23456789}
    assert comparison.changed(first, second) == [
        ("flip", "false", "true"),
        ("beta", "0.1", "0.3"),
        ("loss", "sigmoid", "{'sigmoid': 1.0}"),
        ("new", "absent", "1.23457"),
        ("old", "null", "absent"),
    ]


LOCK: dict[str, Any] = {
    "train": {
        "deps": [{"path": "data", "md5": "d"}],
        "params": {"params.yaml": {"beta": 0.1}},
        "outs": [{"path": "model", "md5": "m"}],
    },
    "evaluate": {"deps": [{"path": "model", "md5": "m"}], "outs": [{"path": "metrics", "md5": "x"}]},
}


def test_an_unfinished_experiment_is_refused() -> None:
    experiments.check_finished("a", LOCK, {"beta": 0.1, "untaken": 1})
    with pytest.raises(
        DataError, match=r"^a: not finished: train has not run since params.yaml: beta changed; run `dvc repro`$"
    ):
        experiments.check_finished("a", LOCK, {"beta": 0.3})
    stale = {**LOCK, "train": {**LOCK["train"], "outs": [{"path": "model", "md5": "n"}]}}
    with pytest.raises(DataError, match=r"^a: not finished: evaluate has not run since model changed"):
        experiments.check_finished("a", stale, {"beta": 0.1})


def test_a_missing_output_is_one_line() -> None:
    files = Files("exp-1", Kept({}))
    with pytest.raises(DataError, match=r"^exp-1: reports/text/pairs.csv: not in Git or in DVC's cache; `dvc fetch"):
        files.csv("reports/text/pairs.csv")


def test_an_output_that_was_changed_is_one_line() -> None:
    """Files are checked against dvc.lock, which also detects a corrupt object in the cache."""
    files = Files("workspace", Kept({"a": b"what a stage wrote", "b": b""}), {"a": "cdb5e1d3d2a6a4c0c1c9ba4a6a7d4b04"})
    assert files.read("b") == b""
    with pytest.raises(DataError, match=r"^workspace: a: differs from dvc.lock; `dvc checkout` restores it"):
        files.read("a")
    own = hashlib.md5(b"what a stage wrote").hexdigest()
    assert replace(files, hashes={"a": own}).read("a") == b"what a stage wrote"


def test_the_table_of_differences_can_be_read_back(runs: tuple[Experiment, Experiment], tmp_path: Path) -> None:
    table = differences.differences(*runs)
    path = tmp_path / "a.csv"
    differences.to_frame(table).to_csv(path, index=False)
    back = pd.read_csv(path)
    assert len(back) == len(table)
    assert back["difference"].tolist() == pytest.approx([difference.value for difference in table])
    row = back.set_index("key").loc["heldout.rewards.accuracy"]
    margins = [run.pairs["margin"] > 0 for run in runs]
    split = int((margins[1] & ~margins[0]).sum()), int((margins[0] & ~margins[1]).sum())
    assert row["p"] == pytest.approx(stats.binomtest(split[0], sum(split)).pvalue)


WRITE = """
import json, sys
sys.path.insert(0, {helpers!r})
from compared_runs import write_run
from ruamel.yaml import YAML
write_run(YAML(typ="safe").load(open("params.yaml"))["beta"])
"""


@pytest.fixture
def repository(tmp_path: Path, own_git: None) -> Path:
    """A repository whose stage writes a run: beta 0.1 at the last commit, 0.3 as the experiment "other". It needs a file that a
    stage with a dvc.yaml of its own writes."""

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    dvc = (sys.executable, "-m", "dvc")
    Path("write.py").write_text(WRITE.format(helpers=str(HELPERS)))
    Path("params.yaml").write_text("beta: 0.1\nloss: sigmoid\nreport:\n  text_examples: 4\n  image_examples: 6\n")
    metrics = [{f"reports/{track}/metrics.json": {"cache": False}} for track in ("text", "image")]
    stage = {"cmd": f"{sys.executable} write.py", "params": ["beta"], "outs": OUTS, "metrics": metrics}
    Path("dvc.yaml").write_text(json.dumps({"stages": {"write": stage | {"deps": ["models/more"]}}}))
    Path("dag/more").mkdir(parents=True)
    more = {"cmd": "mkdir -p models && touch models/more", "wdir": "../..", "outs": ["models/more"]}
    Path("dag/more/dvc.yaml").write_text(json.dumps({"stages": {"more": more}}))
    Path(".gitignore").write_text(
        ".site\n/data\n/models\n/reports/*/*\n!/reports/*/metrics.json\n/reports/comparison*\n"
    )
    run("git", "init", "--quiet")
    run(*dvc, "init", "--quiet")
    run(*dvc, "repro", "--quiet")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "a")
    run(*dvc, "exp", "run", "--quiet", "--temp", "--name", "other", "-S", "beta=0.3")
    return tmp_path


@pytest.mark.slow
def test_experiments_are_read_from_dvc(repository: Path) -> None:
    """The workspace, the last commit and an experiment have the results of their runs. Then what can go wrong."""

    def compare(*names: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["compare", *names])
        return result.exit_code, result.stdout, result.stderr

    headlines = "A and B rank the same unseen preferences correctly.\nA and B classify the same images correctly.\n"
    written = "reports/comparison.html, reports/comparison.csv\n"
    assert compare() == (0, headlines + written, "")
    assert all("models/more" in experiments.read(name).outputs for name in ("workspace", "HEAD", "other"))
    code, stdout, _ = compare("HEAD", "other")
    assert code == 0
    assert stdout.endswith(written)
    html = Path("reports/comparison.html").read_text("utf-8")
    text = Page(html).text
    assert "A is HEAD , B is other" in text
    assert "beta 0.1 → 0.3" in text
    expected = differences.to_frame(differences.differences(experiment("HEAD", 1), experiment("other", 3, beta=0.3)))
    expected.to_csv("expected.csv", index=False)
    pd.testing.assert_frame_equal(
        pd.read_csv("reports/comparison.csv"), pd.read_csv("expected.csv"), check_exact=False, rtol=1e-9
    )
    assert compare("other", "HEAD")[0] == 0
    assert "beta 0.3 → 0.1" in Page(Path("reports/comparison.html").read_text("utf-8")).text

    before = Path("reports/comparison.html").read_bytes()
    kept = Path("reports/text/pairs.csv").read_bytes()
    Path("reports/text/pairs.csv").unlink()
    Path("reports/text/pairs.csv").write_bytes(kept[:-1])
    code, stdout, stderr = compare()
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith("error: workspace: reports/text/pairs.csv: differs from dvc.lock; `dvc checkout`")
    unknown = "error: nope: no experiment, commit, branch or tag of this name; `dvc exp list` shows experiments\n"
    assert compare("nope") == (2, "", unknown)
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("0.1", "0.2"))
    changed = "error: workspace: not finished: write has not run since params.yaml: beta changed; run `dvc repro`\n"
    assert compare() == (2, "", changed)
    shutil.rmtree(".dvc/cache/files")
    code, stdout, stderr = compare("HEAD", "other")
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert re.match("error: HEAD: .*: not in Git or in DVC's cache; `dvc fetch --all-commits` gets", stderr)
    assert Path("reports/comparison.html").read_bytes() == before
    assert not list(Path("reports").glob(".*"))
