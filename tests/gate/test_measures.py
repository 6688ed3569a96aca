"""The shares that describe a data set, by hand."""

import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
from paths import ROOT

from prefdag.config.validate_pairs import MeasureName
from prefdag.gate.measures import ALL, MEASURES, ORIGINS, SAMPLE, measure_shares, scripts
from prefdag.gate.summary import kinds
from prefdag.pairs.schema import read_pairs
from prefdag.stats import intervals


def test_every_list_of_measures_matches_the_registry() -> None:
    """The names allowed in params.yaml, its comments, and the table in the docs."""
    assert list(get_args(MeasureName)) == list(MEASURES)
    comments = re.findall(r"^    (\w+): \{warn: .*\} +# (.*)$", (ROOT / "params.yaml").read_text("utf-8"), re.MULTILINE)
    assert comments == [(name, measure.title) for name, measure in MEASURES.items()]
    rows = "\n".join(
        f"| {name} | {inspect.getdoc(measure.share)} | {measure.remedy} |" for name, measure in MEASURES.items()
    )
    assert f"|---|---|---|\n{rows}\n\n" in (ROOT / "docs" / "data.md").read_text("utf-8")


def read(folder: Path, files: dict[str, list[dict[str, Any]]], row_format: str = "plain") -> pd.DataFrame:
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_pairs(folder, row_format)


def row(prompt: str, chosen: str, rejected: str, **others: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **others}


def shares_of(pairs: pd.DataFrame, source: str = ALL) -> dict[str, tuple[float, int]]:
    """Each measure's share and its n."""
    table = measure_shares(pairs)
    table = table[table["source"] == source]
    assert table["low"].le(table["share"] + 1e-12).all()
    assert table["share"].le(table["high"] + 1e-12).all()
    return {measure: (share, n) for measure, share, n in table[["measure", "share", "n"]].itertuples(index=False)}


def test_shares_by_hand(tmp_path: Path) -> None:
    rows = [
        row("p", "long", "s"),
        row(" P ", "s", "long"),  # the same prompt; prefers the shorter response
        row("q", "long", "s", preference=0.25),  # prefers the shorter response, too
        row("r", "same", "size"),  # neither is longer
        row("s", "long", "s", preference=0.5),  # neither is preferred
        row("т", "дом и сад", "д"),
    ]
    shares = shares_of(read(tmp_path, {"a.jsonl": rows}))
    assert shares["longer_preferred"] == (2 / 4, 4)  # p and the Russian row, of all but r and s
    assert shares["disagreement"] == (pytest.approx((0.25 + 0.5) / 6), 6)
    assert shares["repeated_prompts"] == (pytest.approx(1 / 6), 6)
    assert shares["other_scripts"] == (pytest.approx(1 / 6), 6)
    assert "repeated_runs" not in shares  # no response has a run of four words
    assert "largest_origin" not in shares  # there is only one


def test_the_interval_of_longer_preferred_is_that_of_a_proportion(tmp_path: Path) -> None:
    rows = [row(f"p{i}", *(("long", "s") if i < 30 else ("s", "long"))) for i in range(40)]
    table = measure_shares(read(tmp_path, {"a.jsonl": rows})).set_index("measure")
    assert tuple(table.loc["longer_preferred", ["low", "high"]]) == intervals.proportion(30, 40)


@pytest.mark.slow
def test_repeated_runs_of_four_words(tmp_path: Path) -> None:
    rows = [row("p", "one two three four five", "r"), row("q", "ONE, two; three four. six", "r")]
    assert shares_of(read(tmp_path, {"a.jsonl": rows}))["repeated_runs"] == (
        1 / 4,
        4,
    )  # two runs each, one of them the same
    many = [row(f"p{i}", f"{i} two three four", "r") for i in range(SAMPLE)] + [row("q", "0 two three four", "r")] * 10
    (tmp_path / "b").mkdir()
    assert shares_of(read(tmp_path / "b", {"a.jsonl": many}))["repeated_runs"] == (
        0.0,
        SAMPLE,
    )  # later ones are not counted


def test_each_origin_is_measured(tmp_path: Path) -> None:
    """A row's origin is its `source`, or else its file."""
    a = [row("p", "long", "s")] * 3
    b = [row("p", "s", "long"), row("q", "s", "long", source="web"), row("q", "s", "long", source="")]
    pairs = read(tmp_path, {"a.jsonl": a, "b.jsonl": b})
    assert pairs["origin"].tolist() == ["a.jsonl"] * 3 + ["b.jsonl", "web", "b.jsonl"]
    assert list(dict.fromkeys(measure_shares(pairs)["source"])) == [ALL, "a.jsonl", "b.jsonl", "web"]
    assert shares_of(pairs)["largest_origin"] == (3 / 6, 6)
    assert shares_of(pairs, "a.jsonl")["longer_preferred"] == (1.0, 3)
    assert shares_of(pairs, "b.jsonl")["longer_preferred"] == (0.0, 2)
    assert "largest_origin" not in shares_of(pairs, "web")


@pytest.mark.slow
def test_the_largest_origins_are_measured(tmp_path: Path) -> None:
    """Also if one of them has the name that stands for all rows."""
    rows = [row(f"p{i}", "a", "b", source=f"o{i % 12:02}") for i in range(36)]
    rows += [row(f"q{i}", "b", "a", source=ALL) for i in range(9)] + [row("r", "a", "b", source="o00")]
    pairs = read(tmp_path, {"a.jsonl": rows})
    names = list(dict.fromkeys(measure_shares(pairs)["source"]))
    assert len(names) == ORIGINS  # all rows, and the largest but the one of that name
    assert shares_of(pairs)["repeated_prompts"][1] == 36 + 9 + 1
    other = pairs[pairs["origin"] != ALL]
    assert len(dict.fromkeys(measure_shares(other)["source"])) == 1 + ORIGINS


def test_single_responses_have_no_pairs_to_measure(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "a b c d", "label": bool(i % 2)} for i in range(3)]
    pairs = read(tmp_path, {"a.jsonl": rows}, "unpaired")
    shares = shares_of(pairs)
    assert set(shares) == {"repeated_prompts", "repeated_runs", "other_scripts"}
    assert shares["repeated_runs"] == (pytest.approx(2 / 3), 3)
    assert kinds(pairs) == {"desirable": 1, "undesirable": 2}


def test_kinds_of_preference(tmp_path: Path) -> None:
    rows = [row("p", "a", "b", preference=p) for p in (1, 1, 0.9, 0.5, 0.2)]
    assert kinds(read(tmp_path, {"a.jsonl": rows})) == {"sure": 2, "leaning": 1, "tied": 1, "reversed": 1}


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello", "LATIN"),
        ("Élan naïve", "LATIN"),
        ("Привет, мир", "CYRILLIC"),
        ("안녕하세요", "HANGUL"),
        ("你好吗，世界", "CJK"),
        ("こんにちは", "HIRAGANA"),
        ("שלום", "HEBREW"),
        ("مرحبا", "ARABIC"),
        ("नमस्ते", "DEVANAGARI"),
        ("abc где ж", "CYRILLIC"),
        ("123 😀", "none"),
        ("12", "none"),
    ],
)
def test_the_script_of_a_text(tmp_path: Path, text: str, script: str) -> None:
    assert scripts(read(tmp_path, {"a.jsonl": [row(text, "", "!")]})).tolist() == [script]


def test_no_rows_have_no_measures() -> None:
    empty = pd.DataFrame(columns=["prompt", "chosen", "rejected", "preference", "origin"]).astype({"chosen": "str"})
    assert measure_shares(empty.astype({"rejected": "str", "preference": "float64"})).empty
