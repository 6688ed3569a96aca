"""The benchmarks' arithmetic by hand, and their page against their results. No benchmark is run."""

import os
import resource
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from paths import ROOT

from benchmarks import bench_journey, bench_pipeline, harness, page
from benchmarks.harness import Contender, run_rounds, summarise
from prefdag.lifecycle.errors import DataError, PrefdagError
from prefdag.runtime.yaml import read_yaml

PAGE = ROOT / "docs" / "benchmarks.md"
# Speeds in three rounds, on a machine that is half as fast in the second, and losses of two steps.
RUNS = {"trl": {"speed": [2.0, 1.0, 4.0]}, "ours": {"speed": [20.0, 13.0, 36.0], "share": [0.7, 0.6, 0.65]}}
LOSSES = {"trl": [0.693, 0.5], "ours": [0.693, 0.51]}


def script(name: str, text: str) -> Contender:
    return Contender(name, [sys.executable, "-c", text])


def rows_of(name: str) -> list[tuple[int, str, str, float]]:
    rows = [(i, name, metric, value) for metric, values in RUNS[name].items() for i, value in enumerate(values)]
    return rows + [(i, name, f"loss_{step}", x) for i in range(3) for step, x in enumerate(LOSSES[name], 1)]


@pytest.fixture
def frame() -> pd.DataFrame:
    """The result of `run_rounds` for `RUNS` and `LOSSES`. Ours is in reverse order, since rounds are matched by number."""
    rows = rows_of("trl") + rows_of("ours")[::-1]
    return pd.DataFrame(rows, columns=["round", "contender", "metric", "value"])


# Running


@pytest.mark.slow
def test_contenders_take_turns_and_report_their_metrics() -> None:
    frame = run_rounds([script("a", "print('hello'); print('{\"x\": 3}')"), script("b", "print({})")], rounds=2)
    assert frame[frame["metric"] == "wall_seconds"]["contender"].tolist() == ["a", "b", "a", "b"]
    assert frame[frame["metric"] == "x"][["round", "contender", "value"]].values.tolist() == [[0, "a", 3], [1, "a", 3]]
    assert set(frame["metric"]) == {"x", "peak_rss_gb", "wall_seconds"}
    assert (frame["value"] > 0).all()


@pytest.mark.slow
def test_each_run_has_its_own_peak() -> None:
    """It includes neither a larger run before it nor the process that starts the runs."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    large = harness.measure(script("large", "held = b'x' * 300_000_000; print({})"))["peak_rss_gb"]
    small = harness.measure(script("small", "print({})"))["peak_rss_gb"]
    assert 0.3 < large < 0.4
    assert small < min(size, 0.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise SystemExit(3)", "broken: ended with exit code 3; "),
        ("import os; os.kill(os.getpid(), 9)", "broken: ended with exit code 137; "),
        ("pass", "broken: the last line of its output is not a JSON object of numbers: ''"),
        ("print('{}'); print('done')", "broken: .* numbers: 'done'"),
        ("print('[1]')", "broken: .* numbers: '\\[1\\]'"),
        ("print('{\"x\": [1]}')", "broken: .* numbers: "),
    ],
)
def test_a_run_that_fails_is_one_line(text: str, message: str) -> None:
    with pytest.raises(PrefdagError, match=message) as caught:
        run_rounds([script("broken", text)], rounds=1)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_line_ends_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.bench_pipeline", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}: not an up-to-date clone of the project; run `dvc repro` there first\n"


@pytest.mark.slow
def test_the_imports_of_a_stage_are_timed_apart_from_its_work(tmp_path: Path) -> None:
    """A stage with half a second of nested imports inside a function, and a second of work."""
    files = {
        "stages/__init__.py": "",
        "stages/slow.py": "import time\nclass main:\n    def run():\n        import one\n        time.sleep(1)\n",
        "one.py": "import two",
        "two.py": "import three",
        "three.py": "import time; time.sleep(0.5)",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    timed = Path(harness.__file__).with_name("timed_stage.py")
    metrics = harness.measure(Contender("slow", [sys.executable, timed, "slow"], tmp_path))
    assert 0.5 <= metrics["import_seconds"] < 1
    assert metrics["wall_seconds"] >= metrics["import_seconds"] + 1


@pytest.mark.slow
def test_the_work_of_a_stage_is_timed_once(tmp_path: Path) -> None:
    """A training that scores within it, then scoring by itself: half a second and a second, whatever else takes time."""
    files = {
        "prefdag/__init__.py": "",
        "prefdag/train/loop.py": "import time\nfrom prefdag.distributed.sharing import shared_out\n"
        "def fit():\n    shared_out(0.3)\n    time.sleep(0.2)\n",
        "prefdag/distributed/sharing.py": "import time\ndef shared_out(seconds):\n    time.sleep(seconds)\n",
        "stage.py": "import time\nfrom prefdag.train.loop import fit, shared_out\nfit(); shared_out(1); time.sleep(0.5)\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    env = {**os.environ, "PYTHONPATH": str(bench_journey.SITE), "PREFDAG_WORK": str(tmp_path / "work")}
    subprocess.run([sys.executable, "stage.py"], cwd=tmp_path, env=env, check=True)
    assert [*map(float, (tmp_path / "work").read_text().split())] == pytest.approx([0.5, 1], rel=0.2)


def test_the_functions_that_work_exist() -> None:
    """Their time is counted by name."""
    site = runpy.run_path(str(bench_journey.SITE / "sitecustomize.py"))
    for module, name in site["WORK"].items():
        assert f"\ndef {name}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()


def test_the_share_outside_of_the_work_is_of_each_run() -> None:
    values = [(0, "a", "wall_seconds", 10.0), (0, "a", "work_seconds", 4.0), (1, "a", "wall_seconds", 8.0)]
    values += [(1, "a", "work_seconds", 6.0)]
    frame = bench_journey.with_shares(pd.DataFrame(values, columns=["round", "contender", "metric", "value"]))
    assert frame[frame["metric"] == "share_outside"]["value"].tolist() == [0.6, 0.25]


def test_results_of_other_settings_stay(tmp_path: Path) -> None:
    def measured(value: float) -> pd.DataFrame:
        return pd.DataFrame(
            [("whole run", "x", 1, *[value] * 3)], columns=["what", "metric", "n", "min", "median", "max"]
        )

    for prefix, value in (("tiny, ", 1.0), ("default, ", 2.0), ("tiny, ", 3.0)):
        harness.write(tmp_path / "a.csv", measured(value), prefix)
    table = pd.read_csv(tmp_path / "a.csv")
    assert [*zip(table["what"], table["median"], strict=True)] == [("default, whole run", 2), ("tiny, whole run", 3)]


@pytest.mark.slow
def test_the_empty_dag_has_as_many_stages_and_nothing_to_do(tmp_path: Path) -> None:
    bench_pipeline.empty_dag(tmp_path, 3)
    assert len(read_yaml(tmp_path / "dvc.yaml")["stages"]) == 3
    assert "up to date" in bench_pipeline.call([*bench_pipeline.DVC, "status"], tmp_path)


# Summaries


def test_medians_and_paired_ratios(frame: pd.DataFrame) -> None:
    """Each row is n, minimum, median and maximum. Ratios are taken per round; the ratio of the means would be 69 / 7."""
    summary = summarise(frame, "trl").set_index(["what", "metric"])
    assert summary.loc[("trl", "speed")].tolist() == [3, 1.0, 2.0, 4.0]
    assert summary.loc[("ours", "speed")].tolist() == [3, 13.0, 20.0, 36.0]
    assert summary.loc[("ours / trl", "speed")].tolist() == [3, 36 / 4, 20 / 2, 13 / 1]
    assert summary.loc[("ours - trl", "loss_difference")].tolist() == pytest.approx([3, *[0.51 - 0.5] * 3])
    whats = {what for what, _ in summary.index}
    assert whats == {"trl", "ours", "ours / trl", "ours - trl"}
    assert ("ours / trl", "share") not in summary.index  # the baseline does not have this metric
    assert ("ours / trl", "loss_1") not in summary.index


def test_without_a_baseline_there_are_no_ratios(frame: pd.DataFrame) -> None:
    assert set(summarise(frame)["what"]) == {"ours", "trl"}


def test_a_table_shows_medians_ranges_and_goals(frame: pd.DataFrame) -> None:
    table = harness.markdown(summarise(frame, "trl"), {"ours / trl": "speed >= 9: met"})
    assert table.splitlines() == [
        "|  | loss difference | share | speed | n | goal |",
        "|---|---|---|---|---|---|",
        "| trl |  |  | 2 (1 to 4) | 3 |  |",
        "| ours |  | 0.65 (0.6 to 0.7) | 20 (13 to 36) | 3 |  |",
        "| ours / trl |  |  | 10 (9 to 13) | 3 | speed >= 9: met |",
        "| ours - trl | 0.01 |  |  | 3 |  |",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1230"), (0.123456, "0.123"), (98765, "98800"), (1e-5, "1e-05"), (3.0, "3")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert harness.rounded(value) == text


# Results of studies


def test_rows_are_added_under_the_columns_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    harness.append(path, {"arm": "DPO", "loss": 0.123456789}, ["arm", "loss", "accuracy"])
    harness.append(path, {"accuracy": 1, "arm": "a, b"}, ["arm", "loss", "accuracy"])
    assert path.read_text() == 'arm,loss,accuracy\nDPO,0.123457,\n"a, b",,1\n'
    with pytest.raises(ValueError, match="other"):
        harness.append(path, {"other": 1}, ["arm", "loss", "accuracy"])


def test_a_study_is_run_with_its_folders_or_shows_its_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Path, ...]] = []
    for words in (["run", "a", "b"], ["table"]):
        monkeypatch.setattr(sys, "argv", ["study", *words])
        harness.run_or_table("A study.", lambda *folders: calls.append(folders), lambda: "| a table |", "one", "two")
    assert calls == [(Path("a"), Path("b"))]
    assert capsys.readouterr().out == "| a table |\n"


# The page


def write(folder: Path, ratio: float) -> None:
    summary = pd.DataFrame(
        [("done pipeline / empty DAG", "wall_seconds", 3, ratio, ratio, ratio)],
        columns=["what", "metric", "n", "min", "median", "max"],
    )
    harness.write(folder / "bench_pipeline.csv", summary)


@pytest.mark.parametrize(("ratio", "verdict"), [(1.4, "met"), (1.41, "missed")])
def test_the_page_has_measurements_and_whether_they_meet_their_goals(
    ratio: float, verdict: str, tmp_path: Path
) -> None:
    write(tmp_path, ratio)
    made = page.page(tmp_path)
    assert f"| done pipeline / empty DAG | {ratio} | 3 | wall seconds <= 1.4: {verdict} |" in made
    assert f"- The pipeline itself: {harness.hardware()}; {harness.versions()}.\n" in made
    assert "Five betas" not in made


def test_a_goal_without_a_measurement_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, 1.0)
    csv = tmp_path / "bench_pipeline.csv"
    csv.write_text(csv.read_text().replace("wall_seconds", "seconds"))
    with pytest.raises(DataError, match="no row 'done pipeline / empty DAG', wall_seconds"):
        page.page(tmp_path)


@pytest.mark.skipif(not PAGE.exists(), reason="docs/benchmarks.md is not written yet")
def test_the_page_matches_the_results() -> None:
    assert PAGE.read_text("utf-8") == page.page(), "run `make docs`"
