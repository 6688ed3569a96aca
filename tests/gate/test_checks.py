"""The gate for pairs: which rows it refuses, what it reports, and that every run gives the same bytes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pyarrow.parquet as pq
import pytest
from paths import ROOT

from prefdag.config.validate_pairs import MeasureName, PairLevels, ShareLevels, ValidatePairs
from prefdag.gate.checks import EXCERPT, SHOWN, Table, check
from prefdag.gate.contamination import COLUMNS
from prefdag.gate.pair_expectations import pairs_table
from prefdag.lifecycle.errors import DataError
from prefdag.pairs.schema import PAIRS, SCORES, read_pairs
from prefdag.runtime.artifacts import read_json, sha256
from stages import validate_pairs

pytestmark = pytest.mark.slow


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"p{number}", "chosen": f"c{number}", "rejected": f"r{number}"} | changes


NO_SHARES: dict[MeasureName, ShareLevels] = {name: ShareLevels(warn=None, error=None) for name in get_args(MeasureName)}
NO_OVERLAPS = pd.DataFrame(columns=COLUMNS, dtype="str")

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "blank-prompt": (row(1, prompt=" "), "prompt: blank"),
    "blank-last-turn": (row(1, prompt=[{"role": "user", "content": ""}]), "prompt: blank"),
    "empty-chosen": (row(1, chosen=""), "chosen: blank"),
    "blank-chosen": (row(1, chosen=" \n\u00a0\u2028"), "chosen: blank"),
    "blank-rejected": (row(1, rejected="\t"), "rejected: blank"),
    "identical": (row(1, rejected="c1"), "rejected: the same response as chosen"),
    "preference-low": (row(1, preference=-0.01), "preference: not between 0 and 1"),
    "preference-high": (row(1, preference=1.01), "preference: not between 0 and 1"),
    "copy": (row(0), "copy_of: the same content as an earlier row"),
    "unreadable": (row(1, chosen=None), "chosen: null where text is needed"),
}


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/raw/pairs in an empty project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    folder = tmp_path / validate_pairs.RAW
    folder.mkdir(parents=True)
    return folder


def write(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def levels(level: Any = "error", **others: Any) -> PairLevels:
    kinds = {
        "invalid": level,
        "duplicate": level,
        "near_duplicate": "warn",
        "conflict": "warn",
        "score_order": "warn",
        "encoding": "warn",
        "contamination": "warn",
    }
    return PairLevels(**kinds | others)


def run(
    level: Any = "error",
    max_dropped: float = 0.0,
    row_format: Any = "plain",
    shares: dict[MeasureName, ShareLevels] = NO_SHARES,
    score_scale: float | None = None,
    **others: Any,
) -> None:
    validate_pairs.main(
        ValidatePairs(
            format=row_format,
            columns=None,
            score_scale=score_scale,
            levels=levels(level, **others),
            shares=shares,
            similarity=0.8,
            max_dropped=max_dropped,
        )
    )


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_stops_the_stage_with_one_line_and_keeps_its_outputs(
    kind: str, raw: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bad, line = BAD[kind]
    write(raw, row(0), bad, row(2))
    for out in (validate_pairs.PAIRS, validate_pairs.REPORT / "results.json"):
        out.parent.mkdir(parents=True)
        out.write_text("as before")
    with pytest.raises(DataError) as error:
        run()
    kept = raw.parents[2] / ".prefdag/validation/pairs"
    assert str(error.value).startswith(f"a.jsonl:2:{line}")
    assert str(error.value).endswith(f"; all are listed in {kept / 'offending.csv'}")
    assert "\n" not in str(error.value)
    assert caplog.text == "" == capsys.readouterr().out
    listed = pd.read_csv(kept / "offending.csv")
    assert listed[["source", "level"]].to_numpy().tolist() == [["a.jsonl:2", "error"]]
    assert (kept / "data_docs/index.html").exists()
    assert validate_pairs.PAIRS.read_text() == "as before"
    assert [path.name for path in validate_pairs.REPORT.iterdir()] == ["results.json"]


def lone(number: int, label: Any, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"p{number}", "completion": f"c{number}", "label": label} | changes


def test_an_unpaired_row_is_judged_by_its_one_response(raw: Path) -> None:
    """A missing response is not blank. The same response with the other label is a conflict, not a copy."""
    good = [lone(0, True), lone(0, False), lone(1, False)]
    bad = [lone(2, True, completion=" "), lone(3, False, completion=""), lone(0, False), lone(4, "perhaps")]
    write(raw, *good, *bad)
    run("drop", max_dropped=0.6, row_format="unpaired")
    listed = pd.read_csv(validate_pairs.REPORT / "offending.csv")
    kept = listed["level"] == "warn"
    assert listed[kept][["source", "column"]].to_numpy().tolist() == [
        [f"a.jsonl:{number}", "conflict_with"] for number in (1, 2, 6)
    ]
    listed = listed[~kept]
    assert listed[["source", "column"]].to_numpy().tolist() == [
        ["a.jsonl:4", "chosen"],
        ["a.jsonl:5", "rejected"],
        ["a.jsonl:6", "copy_of"],
        ["a.jsonl:7", "label"],
    ]
    table = pq.read_table(validate_pairs.PAIRS)
    assert table["chosen"].to_pylist() == ["c0", None, None]
    assert table["rejected"].to_pylist() == [None, "c0", "c1"]


def test_rows_that_all_have_the_same_label_pass(raw: Path) -> None:
    """One column is then all null. The split, not the gate, refuses rows that lack a label."""
    write(raw, *[lone(number, True) for number in range(3)])
    run(row_format="unpaired")
    assert pq.read_table(validate_pairs.PAIRS)["rejected"].null_count == 3


def test_a_row_without_any_response_is_listed(raw: Path) -> None:
    """No reader makes such a row, but the gate does not rely on that. An unreadable row is listed once."""
    write(raw, row(0), row(1), row(2, chosen=None))
    pairs = read_pairs(raw, "plain")
    pairs.loc[1, ["chosen", "rejected"]] = None
    offending = check([pairs_table(pairs, NO_OVERLAPS, levels(), 0.8)], raw / "report")
    assert offending[["source", "column"]].to_numpy().tolist() == [["a.jsonl:2", "response"], ["a.jsonl:3", "chosen"]]
    assert offending["reason"][0].startswith("neither chosen nor rejected")


def test_level_drop_removes_lists_and_counts_rows(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(100 + number) for number in range(20)]
    write(raw, row(0), *[bad for bad, _ in BAD.values()], *rows)
    run("drop", max_dropped=len(BAD) / (1 + len(BAD) + 20))
    table = pq.read_table(validate_pairs.PAIRS)
    assert table.schema.equals(PAIRS)
    assert table["chosen"].to_pylist() == ["c0"] + [row["chosen"] for row in rows]
    listed = pd.read_csv(validate_pairs.REPORT / "offending.csv")
    listed = listed[listed["level"] == "drop"]  # some rows are also near duplicates, which only warn
    assert listed["source"].tolist() == [f"a.jsonl:{2 + number}" for number in range(len(BAD))]
    assert f"{1 + len(BAD) + 20} rows read as plain, {len(BAD)} dropped, {1 + 20} written" in capsys.readouterr().out
    results = read_json(validate_pairs.REPORT / "results.json")["pairs"]["results"]
    counts = {(r["expectation"], r["kwargs"].get("column")): r["result"]["unexpected_count"] for r in results}
    assert counts["expect_column_values_to_be_null", "fault"] == 1  # unreadable
    assert counts["expect_column_values_to_not_be_blank", "chosen"] == 2  # empty-chosen, blank-chosen
    assert counts["expect_column_values_to_be_between", "preference"] == 2  # preference-low, preference-high


LONG = " ".join(f"w{number}" for number in range(60))


# Row numbers in the file of `faulty_rows`, counted from 1.
FAULTY = {"duplicate": [2], "invalid": [3], "encoding": [4], "conflict": [5, 6], "near_duplicate": [8]}


def faulty_rows() -> list[dict[str, Any]]:
    """Twelve rows, with one fault of each kind."""
    return [
        row(0),
        row(0),  # 2: a duplicate
        row(1, chosen=" "),  # 3: invalid
        row(2, rejected="caf\u00c3\u00a9"),  # 4: encoding
        row(3),
        row(3, chosen="r3", rejected=" C3 "),  # 5 and 6: a conflict
        row(4, chosen=f"{LONG} other"),
        row(4, chosen=f"{LONG} c4"),  # 8: a near duplicate of 7
        *[row(number) for number in range(10, 14)],
    ]


@pytest.mark.parametrize("dropped", [["invalid", "duplicate", "conflict"], ["invalid", "near_duplicate", "encoding"]])
def test_each_kind_is_dropped_or_kept_by_its_own_level(raw: Path, dropped: list[str]) -> None:
    write(raw, *faulty_rows())
    kinds = {kind: "drop" if kind in dropped else "warn" for kind in FAULTY}
    run(max_dropped=0.5, **kinds)
    assert listed_levels(validate_pairs.REPORT / "offending.csv") == by_row(kinds)
    left = pq.read_table(validate_pairs.PAIRS)["source"].to_pylist()
    gone = {number for kind in dropped for number in FAULTY[kind]}
    assert left == [f"a.jsonl:{number}" for number in range(1, 13) if number not in gone]


@pytest.mark.parametrize("kind", FAULTY)
def test_each_kind_stops_the_stage_by_its_own_level(raw: Path, kind: str) -> None:
    write(raw, *faulty_rows())
    kinds = dict.fromkeys(FAULTY, "drop") | {kind: "error"}
    with pytest.raises(DataError, match=rf"^a\.jsonl:{FAULTY[kind][0]}:"):
        run(max_dropped=0.99, **kinds)
    assert listed_levels(Path(".prefdag/validation/pairs/offending.csv")) == by_row(kinds)


def by_row(kinds: dict[str, str]) -> dict[str, str]:
    """The level of each faulty row by its source."""
    return {f"a.jsonl:{number}": level for kind, level in kinds.items() for number in FAULTY[kind]}


def listed_levels(path: Path) -> dict[str, str]:
    listed = pd.read_csv(path)
    return dict(zip(listed["source"], listed["level"], strict=True))


@pytest.mark.parametrize(
    "text",
    ["caf\u00c3\u00a9", "it\u00e2\u20ac\u2122s", "\u00c2\u00a3 5", "lost \ufffd here", "\u00e2\u20ac\u0153quoted"],
)
def test_a_text_in_a_wrong_encoding_is_refused(raw: Path, text: str) -> None:
    write(raw, row(0, prompt=text), row(1, chosen=text), row(2, rejected=f"x {text} y"))
    with pytest.raises(DataError, match=r"^a\.jsonl:1:prompt: lost characters, .*\(2 more\)"):
        run(encoding="error")


def test_texts_in_other_scripts_pass(raw: Path) -> None:
    texts = [
        "café",
        "ÂNGELA",
        "SÃO PAULO",
        "â la carte",
        "50 €",
        "naïve “quotes” – dashes…",
        "مرحبا",
        "你好",
        "Привет",
        "👩‍👩‍👧",
    ]
    write(raw, *[row(number, prompt=text, chosen=text) for number, text in enumerate(texts)])
    run(encoding="error")
    assert pq.read_table(validate_pairs.PAIRS).num_rows == len(texts)


def test_a_share_above_its_level_is_listed_or_stops(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """36 of all 40 preferred responses are longer, interval 77% to 96%; all 20 of the second origin are, 84% to 100%."""
    rows = [row(i, chosen="long" if i > 3 else "l", rejected="no", source="ab"[i >= 20]) for i in range(40)]
    write(raw, *rows)
    run(shares=NO_SHARES | {"longer_preferred": ShareLevels(warn=0.8, error=None)})
    listed = pd.read_csv(validate_pairs.REPORT / "offending.csv")
    assert listed[["source", "column", "level"]].to_numpy().tolist() == [["b", "longer_preferred", "warn"]]
    assert listed["excerpt"][0] == round(20 / (20 + 1.96**2), 4)  # Wilson's lower end of 20 of 20
    with pytest.raises(DataError) as stopped:
        run(shares=NO_SHARES | {"longer_preferred": ShareLevels(warn=None, error=0.8)})
    assert str(stopped.value).startswith(
        "b:longer_preferred: above 0.8, validate_pairs.shares.longer_preferred.error: "
    )
    run(shares=NO_SHARES | {"longer_preferred": ShareLevels(warn=0.9, error=0.95)})
    assert pd.read_csv(validate_pairs.REPORT / "offending.csv").empty
    shares = pd.read_csv(validate_pairs.REPORT / "shares.csv").set_index(["source", "measure"])
    assert shares.loc[("all rows", "longer_preferred"), "share"] == 36 / 40


def test_rows_of_eval_sets_are_found_in_the_pairs(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are listed, dropped, or stop the stage, by the level. The summary counts overlaps with all and with kept rows."""
    evals = raw.parents[2] / validate_pairs.EVALS
    for name in ("truthfulqa", "winogrande"):
        (evals / name).mkdir(parents=True)
    (evals / "truthfulqa/a.csv").write_text("Question,Best Answer,Incorrect Answers\np1?,no,yes\np7,no,yes\n")
    filled = {"sentence": "An _ helped.", "option1": "ant", "option2": "elk", "answer": "1"}
    (evals / "winogrande/a.jsonl").write_text(json.dumps(filled))
    write(raw, row(0), row(1), row(2, prompt="P1!"), row(3, chosen="An elk helped"))
    expected = {
        "a.jsonl:2": "truthfulqa/a.csv:1",
        "a.jsonl:3": "truthfulqa/a.csv:1",
        "a.jsonl:4": "winogrande/a.jsonl:1",
    }
    for level, kept in (("warn", 4), ("drop", 4 - 3)):
        run(contamination=level, max_dropped=3 / 4)
        assert len(pq.read_table(validate_pairs.PAIRS)) == kept
        listed = pd.read_csv(validate_pairs.REPORT / "offending.csv")
        assert dict(zip(listed["source"], listed["excerpt"], strict=True)) == expected
        assert set(listed["column"]) == {"contaminates"}
        overlaps = read_json(validate_pairs.REPORT / "summary.json")["evals"]
        met_by_kept = int(level == "warn")
        one_row = {"met": 1, "met_exactly": 1, "met_by_kept": met_by_kept}
        assert overlaps["truthfulqa"] == {"rows": 2, "pairs": 2, **one_row}
        assert overlaps["winogrande"] == {"rows": 1, "pairs": 1, **one_row}
    met = pd.read_csv(validate_pairs.REPORT / "contamination.csv")
    assert met["words"].tolist() == ["p1", "p1", "an elk helped"]
    with pytest.raises(DataError, match=r"^a.jsonl:2:contaminates: contains text of an eval set.* \(2 more\)"):
        run(contamination="error")


def test_rows_of_annotators_who_disagree_become_one_pair(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    votes = [("c0", "r0", "ann"), ("r0", "c0", "bob"), ("c0", "r0", "eve")]
    write(raw, row(1), *(row(0, chosen=c, rejected=r, annotator=who) for c, r, who in votes))
    run(conflict="error")
    table = pq.read_table(validate_pairs.PAIRS)
    assert table.schema.equals(PAIRS)
    assert table["preference"].to_pylist() == pytest.approx([1.0, 2 / 3])
    assert (
        "4 rows read as plain, 2 merged into other rows of the same pair, 0 dropped, 2 written"
        in capsys.readouterr().out
    )
    assert pd.read_csv(validate_pairs.REPORT / "merged.csv")["into"].tolist() == ["a.jsonl:2"] * 2
    assert read_json(validate_pairs.REPORT / "summary.json")["rows"] == {
        "read": 4,
        "merged": 2,
        "dropped": 0,
        "kept": 2,
    }


def test_more_rows_to_drop_than_max_dropped_stop_the_stage(raw: Path) -> None:
    write(raw, *[row(number) for number in range(18)], row(18, chosen=""), row(19, chosen=""))
    with pytest.raises(
        DataError, match=r"a\.jsonl:19:chosen: blank.*\(1 more\); 2 of 20 rows exceed validate_pairs.max_dropped"
    ):
        run("drop", max_dropped=1 / 20)
    assert not validate_pairs.PAIRS.exists()


def test_a_row_in_another_format_is_refused_with_its_keys(raw: Path) -> None:
    write(raw, {"question": "p", "answer": "c"}, {"question": "q", "answer": "d"})
    with pytest.raises(DataError, match=r"^a\.jsonl:1:prompt: missing; .* the row has question, answer; .*\(1 more\)"):
        run()


def test_many_bad_rows_print_twenty_lines(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(raw, *[row(number, chosen="") for number in range(50)])
    with pytest.raises(DataError, match=r"^a\.jsonl:1:chosen: .*\(49 more\)"):
        run()
    assert [record.message.split(": ")[0] for record in caplog.records] == [
        f"a.jsonl:{number}:chosen" for number in range(2, SHOWN + 1)
    ]
    assert len(pd.read_csv(".prefdag/validation/pairs/offending.csv")) == 50


def test_the_same_data_make_the_same_bytes(raw: Path) -> None:
    write(raw, row(0), row(0), row(1, chosen=""), *[row(number) for number in range(2, 60)])
    hashes = []
    for _ in range(2):
        run("drop", max_dropped=0.1)
        hashes.append((sha256(validate_pairs.PAIRS), sha256(validate_pairs.REPORT)))
    assert hashes[0] == hashes[1]


def test_data_docs_show_expectations_and_offending_rows(raw: Path) -> None:
    write(
        raw, row(0), row(1, chosen="", rejected="<script>alert(1)</script>"), row(2, rejected="c2"), row(3, chosen=None)
    )
    report = raw / "report"
    check([pairs_table(read_pairs(raw, "plain"), NO_OVERLAPS, levels(), 0.8)], report)
    docs = report / "data_docs"
    (page,) = (docs / "validations").rglob("*.html")
    assert f'<a href="{page.relative_to(docs).as_posix()}">pairs</a>' in (docs / "index.html").read_text()
    html = page.read_text()
    for text in ("every row can be read", "chosen and rejected differ", "a.jsonl:2", "a.jsonl:3", "a.jsonl:4"):
        assert text in html
    (link,) = re.findall(r'href="([^"]*offending.csv)"', html)
    assert (page.parent / link).resolve() == report / "offending.csv"
    for link in ("static/images/logo-long.png", "great-expectations-web-assets"):
        assert (link in html) == (docs / link).exists()


def test_long_values_are_shortened_in_the_report(raw: Path) -> None:
    long = "x" * 1_000_000
    write(raw, row(0), row(1, chosen=long, rejected=long))
    report = raw / "report"
    check([pairs_table(read_pairs(raw, "plain"), NO_OVERLAPS, levels(), 0.8)], report)
    assert max(path.stat().st_size for path in report.rglob("*.[hjc]*") if "static" not in path.parts) < 200_000


def test_a_measure_with_nothing_to_count_passes(raw: Path) -> None:
    write(raw, lone(0, True), lone(1, False))
    level = ShareLevels(warn=0.5, error=0.9)
    run(row_format="unpaired", shares=NO_SHARES | {"longer_preferred": level, "disagreement": level})
    assert pd.read_csv(validate_pairs.REPORT / "offending.csv").empty


def test_the_excerpt_of_an_unreadable_row_is_shortened(raw: Path) -> None:
    write(raw, row(0), row(1, chosen=None, rejected="x" * 10_000))
    run("drop", max_dropped=0.5)
    assert len(pd.read_csv(validate_pairs.REPORT / "offending.csv")["excerpt"][0]) == EXCERPT


def test_characters_that_cannot_be_printed_are_escaped(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The line of a measure starts with an origin, which is any text that a row has as its `source`."""
    write(raw, *[row(i, chosen="long", rejected="s", source="a\nb\u2028") for i in range(9)], row(10, source="c"))
    with pytest.raises(DataError) as stopped:
        run(shares=NO_SHARES | {"longer_preferred": ShareLevels(warn=None, error=0.1)})
    assert [str(stopped.value).isprintable(), *(record.getMessage().isprintable() for record in caplog.records)] == [
        True,
        True,
    ]
    assert caplog.records[0].getMessage().startswith(r"a\nb\u2028:longer_preferred: ")


def test_an_expectation_that_cannot_be_evaluated_is_an_error(tmp_path: Path) -> None:
    rows = pd.DataFrame({"source": ["a:1"], "chosen": [3]})
    table = pairs_table(
        pd.DataFrame(columns=[*PAIRS.names, *SCORES, "fault"]).assign(source=[]), NO_OVERLAPS, levels(), 0.8
    )
    with pytest.raises(RuntimeError, match="could not be evaluated"):
        check([Table("pairs", rows, table.expectations)], tmp_path / "report")


def test_the_gate_imports_great_expectations_late_and_never_torch() -> None:
    code = (
        "import sys, stages.validate_pairs, stages.validate_images; assert 'great_expectations' not in sys.modules; "
        "import prefdag.gate.checks; assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"GX_ANALYTICS_ENABLED": "false"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_malformed_file_stops_dvc_with_one_line_and_keeps_its_lock(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC removes the outputs before it runs a stage. `dvc checkout` brings back those of the last good run."""
    monkeypatch.delenv("DVC_ROOT")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    command = [sys.executable, "-m", "stages.validate_pairs"]
    stage = {
        "cmd": " ".join(command),
        "deps": ["data/raw/pairs"],
        "outs": [str(validate_pairs.PAIRS), str(validate_pairs.REPORT)],
    }
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"validate_pairs": stage}}))

    def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)

    assert dvc("init", "--no-scm", "--quiet").returncode == 0
    write(raw, *(row(number) for number in range(4)))
    done = dvc("repro")
    assert done.returncode == 0, done.stderr
    before = {path: sha256(path) for path in (Path("dvc.lock"), validate_pairs.PAIRS, validate_pairs.REPORT)}
    (raw / "a.jsonl").write_bytes((raw / "a.jsonl").read_bytes() + b'{"prompt": "p"\n')
    direct = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (direct.returncode, direct.stdout, direct.stderr.count("\n")) == (2, "", 1)
    assert direct.stderr.startswith("error: a.jsonl:5:15: not JSON (")  # 14 characters before the line ends
    assert {path: sha256(path) for path in before} == before
    done = dvc("repro")
    assert done.returncode != 0
    assert direct.stderr in done.stderr
    assert sha256(Path("dvc.lock")) == before[Path("dvc.lock")]
    assert not validate_pairs.PAIRS.exists()
    assert dvc("checkout").returncode == 0
    assert {path: sha256(path) for path in before} == before


def test_scores_that_contradict_the_preference_are_listed(raw: Path) -> None:
    scores = [(2, 1), (1, 1), (1, 2), (None, 2)]
    rows = [row(i, score_chosen=a, score_rejected=b) for i, (a, b) in enumerate(scores)]
    write(raw, *rows, row(9, score_chosen=1, score_rejected=2, preference=0.2))
    run()
    listed = pd.read_csv(validate_pairs.REPORT / "offending.csv")
    assert listed[["source", "column", "level", "excerpt"]].to_numpy().tolist() == [
        ["a.jsonl:2", "score_order", "warn", "tie: chosen 1, rejected 1"],
        ["a.jsonl:3", "score_order", "warn", "inversion: chosen 1, rejected 2"],
    ]
    run(score_order="drop", max_dropped=0.5)
    assert pq.read_table(validate_pairs.PAIRS)["source"].to_pylist() == ["a.jsonl:1", "a.jsonl:4", "a.jsonl:5"]
    write(raw, *rows)
    run(score_order="error", score_scale=1.0)
    preferences = pq.read_table(validate_pairs.PAIRS)["preference"].to_pylist()
    assert preferences[1] == 0.5
    assert preferences[0] == 1 - preferences[2] > 0.7


def test_responses_are_judged_with_their_tool_calls(raw: Path) -> None:
    """Two calls differ, and neither is blank; the same call twice is no preference."""
    calls = [[{"role": "assistant", "content": None, "tool_calls": [{"name": name}]}] for name in ("f", "g")]
    write(raw, row(0, chosen=calls[0], rejected=calls[1]), row(1, chosen=calls[0], rejected=calls[0]), row(2))
    run("drop", max_dropped=0.5)
    listed = pd.read_csv(validate_pairs.REPORT / "offending.csv")
    assert listed[["source", "column"]].to_numpy().tolist() == [["a.jsonl:2", "rejected"]]
    table = pq.read_table(validate_pairs.PAIRS)
    assert table["chosen"].to_pylist() == ["", "c2"]
    assert "f" in table["chosen_extra"].to_pylist()[0]


def test_what_is_not_read_is_said_and_counted(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evals = raw.parents[2] / validate_pairs.EVALS / "truthfulqa"
    evals.mkdir(parents=True)
    (evals / "a.csv").write_text("Type,Question,Best Answer,Incorrect Answers\nx,q?,no,yes\n")
    write(raw, row(0, id=1, note="x"), row(1, id=2))
    run()
    assert "columns of pairs that are not read: id (2 rows), note (1 row)\n" in (shown := capsys.readouterr().out)
    assert "columns of truthfulqa that are not read: Type (1 row)\n" in shown
    assert read_json(validate_pairs.REPORT / "summary.json")["ignored_columns"] == {"id": 2, "note": 1}


def test_published_splits_are_counted(raw: Path) -> None:
    (raw / "test.jsonl").write_text(json.dumps(row(7)))
    write(raw, row(0), row(1, split="train"))
    run()
    assert read_json(validate_pairs.REPORT / "summary.json")["splits"] == {"train": 1, "test": 1}
    assert pq.read_table(validate_pairs.PAIRS)["split"].to_pylist() == [None, "train", "test"]
