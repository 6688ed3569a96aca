"""A raw file gives the expected rows, or one line that names the file, the row and the column."""

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hh_rlhf import hh_rlhf_files, transcripts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefdag.formats.registry import ROW_FORMATS
from prefdag.lifecycle.errors import DataError
from prefdag.pairs.schema import FAULT, PAIRS, read_pairs, write_pairs

GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}
USER = [{"role": "user", "content": "p"}]


def read(folder: Path, content: bytes | str, row_format: str = "plain", name: str = "a.jsonl") -> pd.DataFrame:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_pairs(folder, row_format)


def faults(pairs: pd.DataFrame) -> list[str]:
    """The message for each unreadable row: FILE:ROW:COLUMN: reason."""
    bad = pairs[pairs["fault"].notna()]
    return [
        ":".join(filter(None, [row["source"], row["fault_column"] if isinstance(row["fault_column"], str) else ""]))
        + f": {row['fault']}"
        for _, row in bad.iterrows()
    ]


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def sharegpt(*turns: tuple[Any, Any], chosen: Any = ("gpt", "c"), rejected: Any = ("gpt", "r")) -> dict[str, Any]:
    """A row in the format of the default data."""
    return {
        "conversations": [{"from": who, "value": text} for who, text in turns],
        "chosen": {"from": chosen[0], "value": chosen[1]},
        "rejected": {"from": rejected[0], "value": rejected[1]},
    }


def hh(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": f"{prompt}\n\nAssistant:{chosen}", "rejected": f"{prompt}\n\nAssistant:{rejected}"}


def pku(*turns: tuple[str, str]) -> dict[str, Any]:
    """A row of PKU's processed-hh-rlhf."""
    return {
        "context": [{"role": role, "text": text} for role, text in turns],
        "chosen": {"role": "assistant", "text": "c"},
        "rejected": {"role": "assistant", "text": "r"},
    }


def turns(*contents: str) -> list[dict[str, str]]:
    """A dialogue that the user begins."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


ULTRA = {"prompt": "p", "chosen": turns("p", "c"), "rejected": turns("p", "r"), "score_chosen": 8.0}
ALPACA = {"instruction": "i", "input": "", "output": "c", "rejected": "r"}
LONE = {"prompt": "p", "completion": "c", "label": True}
GOOD_ROWS: dict[str, dict[str, Any]] = {
    "plain": GOOD,
    "sharegpt": sharegpt(("human", "p")),
    "hh-rlhf": hh("\n\nHuman: p", " c", " r"),
    "unpaired": LONE,
    "pku": pku(("human", "p")),
    "messages": ULTRA,
    "alpaca": ALPACA,
}


def test_auto_goes_by_the_first_objects(tmp_path: Path) -> None:
    pairs = read(tmp_path, "3\n[]\n" + lines(GOOD, LONE), "auto")
    assert pairs["chosen"].notna().tolist() == [False, False, True, False]
    assert [line.split(": ")[1].split(";")[0] for line in faults(pairs)] == [
        "a number where an object is needed",
        "a list where an object is needed",
        "missing",
    ]


def test_pku_keeps_all_turns(tmp_path: Path) -> None:
    pairs = read(tmp_path, lines(pku(("human", "a"), ("assistant", "b"), ("human", "d"))), "pku")
    assert pairs["prompt"][0] == turns("a", "b", "d")
    assert (pairs["chosen"][0], pairs["rejected"][0]) == ("c", "r")


def test_messages_may_include_the_prompt_or_not(tmp_path: Path) -> None:
    reply = {side: [{"role": "assistant", "content": side[0]}] for side in ("chosen", "rejected")}
    system = [{"role": "system", "content": "s"}]
    rows = [
        {"chosen": system + turns("a", "b", "d", "c"), "rejected": system + turns("a", "b", "d", "r")},
        reply | {"prompt": "p"},
        reply | {"prompt": turns("a", "b", "d")},
        ULTRA,
    ]
    pairs = read(tmp_path, lines(*rows), "messages")
    assert faults(pairs) == []
    assert pairs["prompt"].tolist() == [system + turns("a", "b", "d"), USER, turns("a", "b", "d"), USER]
    assert (pairs["chosen"] == "c").all()
    assert (pairs["rejected"] == "r").all()


def test_alpaca_joins_instruction_and_input(tmp_path: Path) -> None:
    rows = [ALPACA, ALPACA | {"input": "x"}, {key: ALPACA[key] for key in ("instruction", "output", "rejected")}]
    pairs = read(tmp_path, lines(*rows), "alpaca")
    assert [prompt[0]["content"] for prompt in pairs["prompt"]] == ["i", "i\n\nx", "i"]


@pytest.mark.parametrize(
    ("columns", "preference"),
    [
        ({}, 1.0),
        ({"preference": 0.2}, 0.2),
        ({"votes_chosen": 3, "votes_rejected": 1}, 3 / (3 + 1)),
        ({"votes_chosen": 0, "votes_rejected": 2}, 0 / (0 + 2)),
        ({"votes_chosen": "3", "votes_rejected": "2"}, 3 / (3 + 2)),
        # Higher, tie, lower, higher.
        ({"ratings_chosen": [5, 3, 2, 4], "ratings_rejected": [1, 3, 4, 2]}, (1 + 0.5 + 0 + 1) / 4),
    ],
)
@pytest.mark.parametrize("row_format", [name for name in GOOD_ROWS if name != "unpaired"])
def test_a_preference_from_its_own_column_votes_or_ratings(
    tmp_path: Path, row_format: str, columns: dict[str, Any], preference: float
) -> None:
    assert read(tmp_path, lines(GOOD_ROWS[row_format] | columns), row_format)["preference"].tolist() == [preference]


def test_sharegpt_keeps_system_and_turns(tmp_path: Path) -> None:
    row = sharegpt(("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "d"))
    pairs = read(tmp_path, json.dumps([row, sharegpt(("human", "p"))], indent=1), "sharegpt", "demo.json")
    assert pairs["source"].tolist() == ["demo.json:1", "demo.json:2"]
    assert pairs["prompt"][0] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "d"},
    ]
    assert (pairs["prompt"][1], pairs["chosen"][1], pairs["rejected"][1], pairs["preference"][1]) == (USER, "c", "r", 1)
    assert pairs[list(FAULT)].isna().all(axis=None)


def test_hh_rlhf_splits_at_the_last_reply(tmp_path: Path) -> None:
    prompt = "\n\nHuman: one\n\nAssistant: two\nlines\n\nHuman:  three"
    pairs = read(tmp_path, lines(hh(prompt, "  yes\n", " no Human: quoted")), "hh-rlhf")
    assert pairs["prompt"][0] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two\nlines"},
        {"role": "user", "content": " three"},
    ]
    assert (pairs["chosen"][0], pairs["rejected"][0]) == (" yes\n", "no Human: quoted")


def test_every_file_format_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [GOOD | {"preference": 0.75}, {"prompt": 'a,\n"b"', "chosen": "é", "rejected": "", "preference": 1.0}]
    frame = pd.DataFrame(rows)
    writers = {
        "a.json": lambda path: path.write_text(json.dumps(rows)),
        "a.jsonl": lambda path: path.write_text(lines(*rows)),
        "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines(*rows).encode())),
        "a.csv": lambda path: frame.to_csv(path, index=False),
        "a.parquet": lambda path: frame.to_parquet(path),
    }
    frames = []
    for number, (name, write) in enumerate(writers.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder / name)
        pairs = read_pairs(folder, "plain")
        assert pairs["source"].tolist() == [f"{name}:1", f"{name}:2"]
        frames.append(pairs.drop(columns=["source", "origin"]))
    for pairs in frames[1:]:
        pd.testing.assert_frame_equal(pairs, frames[0])
    assert frames[0]["preference"].tolist() == [0.75, 1.0]
    assert frames[0]["prompt"][1][0]["content"] == 'a,\n"b"'


def test_plain_prompt_as_messages(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, *USER]
    assert read(tmp_path, lines(GOOD | {"prompt": messages}))["prompt"][0] == messages


@pytest.mark.parametrize(
    "text",
    [
        "👩‍👩‍👧",
        "مرحبا שלום",
        "a\r\nb",
        "a\u2028b\u2029c\x85d",
        "a\u0000b",
        "\ufeff",
        "x" * 2_000_000,
        "<|im_end|>",
        "a\rb\nc",
    ],
    ids=["emoji", "rtl", "crlf", "separators", "nul", "bom", "long", "control-token", "newlines"],
)
@pytest.mark.parametrize("escaped", [True, False])
def test_unusual_valid_text_is_kept(tmp_path: Path, text: str, escaped: bool) -> None:
    row = json.dumps(GOOD | {"chosen": text}, ensure_ascii=escaped)
    pairs = read(tmp_path, f"{row}\n{json.dumps(GOOD)}\n")
    assert pairs["chosen"].tolist() == [text, "c"]
    assert faults(pairs) == []
    write_pairs(tmp_path / "out.parquet", pairs)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.equals(PAIRS)
    assert table["chosen"].to_pylist() == [text, "c"]


@pytest.mark.parametrize(
    ("content", "sources"),
    [
        (b"\xef\xbb\xbf" + lines(GOOD).encode(), ["a.jsonl:1"]),
        (lines(GOOD, GOOD).replace("\n", "\r\n"), ["a.jsonl:1", "a.jsonl:2"]),
        (lines(GOOD) + "\n \r\n" + lines(GOOD), ["a.jsonl:1", "a.jsonl:4"]),
        (lines(GOOD).strip(), ["a.jsonl:1"]),
        (" \n" + json.dumps([GOOD, GOOD]) + "\n\n", ["a.jsonl:1", "a.jsonl:2"]),
        (lines(GOOD | {"other": None}), ["a.jsonl:1"]),
    ],
    ids=["bom", "crlf", "blank-lines", "no-last-newline", "list", "other-key"],
)
def test_unusual_valid_files_are_read(tmp_path: Path, content: bytes | str, sources: list[str]) -> None:
    pairs = read(tmp_path, content)
    assert pairs["source"].tolist() == sources
    assert faults(pairs) == []


def test_unusual_valid_csv_is_read(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfprompt,chosen,rejected\r\n"a\nb",NA,' + "\u2028".encode() + b"\r\n\r\nc,null,1\x002\r\n"
    pairs = read(tmp_path, content, name="a.csv")
    assert pairs["chosen"].tolist() == ["NA", "null"]
    assert pairs["rejected"].tolist() == ["\u2028", "1\x002"]


def test_unpaired_rows_have_one_response(tmp_path: Path) -> None:
    """A desirable response is chosen, an undesirable one rejected. The same response with the other label is another row."""
    messages = [{"role": "system", "content": "s"}, *USER]
    pairs = read(tmp_path, lines(LONE, LONE | {"label": False}, LONE | {"prompt": messages}), "unpaired")
    assert faults(pairs) == []
    assert pairs["prompt"].tolist() == [USER, USER, messages]
    assert pairs["id"].nunique() == 3
    assert (pairs["preference"] == 1.0).all()
    write_pairs(tmp_path / "out.parquet", pairs)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.equals(PAIRS)
    assert table["chosen"].to_pylist() == ["c", None, "c"]
    assert table["rejected"].to_pylist() == [None, "c", None]


@pytest.mark.parametrize("label", [True, 1, 1.0, "true", "True", "TRUE", "1", "1.0"])
def test_labels_in_every_spelling(tmp_path: Path, label: Any) -> None:
    """JSON has booleans, other files have 0 and 1, CSV has text."""
    opposite = (
        {"true": "FALSE", "True": "False", "TRUE": "false", "1": "0", "1.0": "0.0"}[label]
        if isinstance(label, str)
        else type(label)(0)
    )
    pairs = read(tmp_path, lines(LONE | {"label": label}, LONE | {"label": opposite}), "unpaired")
    assert faults(pairs) == []
    assert pairs["chosen"].isna().tolist() == [False, True]
    assert pairs["rejected"].isna().tolist() == [True, False]


@pytest.mark.parametrize("name", ["a\nb.jsonl", "a\u2028.jsonl", "a\udce9.jsonl"], ids=["line", "separator", "latin-1"])
def test_a_file_name_that_cannot_be_printed_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        DataError, match=r"^'a.*jsonl': the name has characters that cannot be printed; rename"
    ) as error:
        read(tmp_path, lines(GOOD), name=name)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("value", "mark"),
    [(7, "7"), (7.0, "7"), ("7", "7"), (0, "0"), ("NA", "NA"), (None, None), ("", None), (float("nan"), None)],
)
def test_annotator_and_origin_of_a_row(tmp_path: Path, value: Any, mark: str | None) -> None:
    """pandas turns integers into floats if one is missing, so 7.0 is 7."""
    pairs = read(tmp_path, lines(GOOD | {"annotator": value, "source": value}))
    assert faults(pairs) == []
    assert (pairs["annotator"].dropna().tolist(), pairs["origin"].tolist()) == (
        [mark] if mark else [],
        [mark or "a.jsonl"],
    )


MALFORMED_ROWS: dict[str, tuple[str, bytes | str, str]] = {
    "null": ("plain", lines(GOOD | {"chosen": None}), "chosen: null where text"),
    "number": ("plain", lines(GOOD | {"chosen": 3}), "chosen: a number where text"),
    "boolean": ("plain", lines(GOOD | {"rejected": True}), "rejected: a boolean where text"),
    "list": ("plain", lines(GOOD | {"rejected": ["r"]}), "rejected[0]: text where a turn is needed"),
    "nan": ("plain", '{"prompt":"p","chosen":NaN,"rejected":"r"}', "chosen: a number where text"),
    "missing": ("plain", lines({"prompt": "p", "chosen": "c"}), "rejected: missing; format plain needs prompt,"),
    "misspelt": ("plain", lines({"prompt": "p", "chosen": "c", "reject": "r"}), "rejected: missing; format plain"),
    "repeated-key": ("plain", '{"prompt":"p","chosen":"a","chosen":"b","rejected":"r"}', "chosen: a repeated key"),
    "escaped-surrogate": ("plain", lines(GOOD | {"chosen": "ab\ud83d"}), "chosen: bytes that are not UTF-8, or a lone"),
    "bad-utf-8": ("plain", b'{"prompt":"p","chosen":"ab\xff","rejected":"r"}', "chosen: bytes that are not UTF-8"),
    "latin-1": ("plain", '{"prompt":"p","chosen":"é","rejected":"r"}'.encode("latin-1"), "chosen: bytes that are not"),
    "bad-key": ("plain", b'{"prompt":"p","cho\xffsen":"c","rejected":"r"}', "chosen: missing"),
    "truncated": ("plain", '{"prompt":"p","chosen":"c', "24: not JSON"),  # 23 characters before the open string
    "not-json": ("plain", "prompt: p", "1: not JSON"),
    "raw-control-character": (
        "plain",
        '{"prompt":"p\x00","chosen":"c","rejected":"r"}',
        "13: not JSON",
    ),  # after {"prompt":"p
    "two-objects": ("plain", json.dumps(GOOD) * 2, f"{len(json.dumps(GOOD)) + 1}: not JSON"),
    "not-an-object": ("plain", '"text"', " text where an object"),
    "deep": ("plain", '{"prompt":' + "[" * 100_000, " not usable JSON"),
    "huge-number": ("plain", '{"prompt":' + "9" * 5_000 + "}", " not usable JSON"),
    "preference-text": ("plain", lines(GOOD | {"preference": "high"}), "preference: not a finite number"),
    "preference-null": ("plain", lines(GOOD | {"preference": None}), "preference: null where a number"),
    "preference-boolean": ("plain", lines(GOOD | {"preference": True}), "preference: a boolean where a number"),
    "preference-nan": ("plain", lines(GOOD | {"preference": float("nan")}), "preference: not a finite number"),
    "preference-huge": ("plain", lines(GOOD | {"preference": 10**400}), "preference: not a finite number"),
    "annotator-boolean": ("plain", lines(GOOD | {"annotator": True}), "annotator: a boolean where text is needed"),
    "annotator-half": ("plain", lines(GOOD | {"annotator": 1.5}), "annotator: a number where text is needed"),
    "empty-prompt": ("plain", lines(GOOD | {"prompt": []}), "prompt: the prompt ends with no turn"),
    "bad-role": (
        "plain",
        lines(GOOD | {"prompt": [{"role": "judge", "content": "p"}]}),
        "prompt[0].role: unknown role",
    ),
    "no-content": ("plain", lines(GOOD | {"prompt": [{"role": "user"}]}), "prompt[0].content: missing"),
    "turn-text": ("plain", lines(GOOD | {"prompt": ["p"]}), "prompt[0]: text where a turn is needed"),
    "two-preferences": (
        "plain",
        lines(GOOD | {"preference": 1, "votes_chosen": 1, "votes_rejected": 0}),
        "votes_chosen: the row has preference too; keep one",
    ),
    "half-the-votes": (
        "plain",
        lines(GOOD | {"votes_chosen": 1}),
        "votes_rejected: missing; a row needs both votes_chosen",
    ),
    "no-votes": ("plain", lines(GOOD | {"votes_chosen": 0, "votes_rejected": 0}), "votes_chosen: no votes for either"),
    "negative-votes": ("plain", lines(GOOD | {"votes_chosen": 2, "votes_rejected": -1}), "votes_rejected: -1 votes"),
    "votes-null": ("plain", lines(GOOD | {"votes_chosen": 2, "votes_rejected": None}), "votes_rejected: null where"),
    "ratings-number": ("plain", lines(GOOD | {"ratings_chosen": 3, "ratings_rejected": [1]}), "ratings_chosen: a num"),
    "ratings-unequal": (
        "plain",
        lines(GOOD | {"ratings_chosen": [3, 2], "ratings_rejected": [1]}),
        "ratings_rejected: 1 ratings, but 2 in ratings_chosen",
    ),
    "ratings-empty": ("plain", lines(GOOD | {"ratings_chosen": [], "ratings_rejected": []}), "ratings_rejected: 0 rat"),
    "rating-text": (
        "plain",
        lines(GOOD | {"ratings_chosen": ["high"], "ratings_rejected": [1]}),
        "ratings_chosen[0]: not a finite number",
    ),
    "pku-roles": (
        "pku",
        lines(pku(("judge", "p"))),
        "context[0].role: unknown role 'judge'; use system, developer, user",
    ),
    "messages-text": ("messages", lines(ULTRA | {"rejected": "r"}), "rejected: not the same prompt as chosen"),
    "messages-empty": ("messages", lines(ULTRA | {"chosen": []}), "chosen: ends with no turn; the last"),
    "messages-user": ("messages", lines(ULTRA | {"chosen": turns("p")}), "chosen: ends with a user turn; the last"),
    "messages-prompts": ("messages", lines(ULTRA | {"rejected": turns("q", "r")}), "rejected: not the same prompt as"),
    "messages-alone": (
        "messages",
        lines({side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}),
        "chosen: the prompt ends with no turn",
    ),
    "alpaca-input": ("alpaca", lines(ALPACA | {"input": 3}), "input: a number where text"),
    "assistant-last": (
        "sharegpt",
        lines(sharegpt(("human", "p"), ("gpt", "a"))),
        "conversations: the prompt ends with",
    ),
    "unknown-from": ("sharegpt", lines(sharegpt(("judge", "p"))), "conversations[0].from: unknown role 'judge'"),
    "human-reply": (
        "sharegpt",
        lines(sharegpt(("human", "p"), chosen=("human", "c"))),
        "chosen: ends with a user turn",
    ),
    "value-number": ("sharegpt", lines(sharegpt(("human", 1))), "conversations[0].value: a number where text"),
    "not-turns": ("sharegpt", lines(sharegpt() | {"conversations": 3}), "conversations: a number where text"),
    "repeated-in-turn": (
        "sharegpt",
        lines(sharegpt(("human", "p"))).replace('"value": "c"', '"value": "c", "value": "d"'),
        "chosen.value: a repeated key",
    ),
    "other-prompt": (
        "hh-rlhf",
        lines({"chosen": hh("\n\nHuman: a", " c", "")["chosen"], "rejected": hh("\n\nHuman: b", "", " r")["rejected"]}),
        "rejected: not the same prompt as chosen",
    ),
    "label-number": (
        "unpaired",
        lines(LONE | {"label": 2}),
        "label: a number where true or false is needed; write true",
    ),
    "label-half": ("unpaired", lines(LONE | {"label": 0.5}), "label: a number where true or false"),
    "label-text": ("unpaired", lines(LONE | {"label": "so-so"}), "label: 'so-so' where true or false"),
    "label-null": ("unpaired", lines(LONE | {"label": None}), "label: null where true or false"),
    "label-list": ("unpaired", lines(LONE | {"label": [1]}), "label: a list where true or false"),
    "label-repeated": ("unpaired", lines(LONE)[:-2] + ',"label":true}', "label: a repeated key"),
    "completion-null": ("unpaired", lines(LONE | {"completion": None}), "completion: null where text"),
    "pair-as-unpaired": ("unpaired", lines(GOOD), "completion: missing; format unpaired needs prompt or"),
    "unpaired-as-plain": (
        "plain",
        lines({"prompt": "p", "chosen": "c", "rejected": None}),
        "rejected: null where text",
    ),
    "no-assistant": ("hh-rlhf", lines({"chosen": "c", "rejected": "r"}), "chosen: has no '\\n\\nAssistant:'"),
    "human-last": ("hh-rlhf", lines(hh("\n\nHuman: a", " c\n\nHuman: d", " r")), "chosen: ends with a human turn"),
    "text-before": ("hh-rlhf", lines(hh("x\n\nHuman: a", " c", " r")), "chosen: text before the first turn"),
    "two-replies": (
        "hh-rlhf",
        lines(hh("\n\nHuman: a\n\nAssistant: b", " c", " r")),
        "chosen: the prompt ends with an as",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MALFORMED_ROWS)
def test_a_malformed_row_is_one_line(tmp_path: Path, kind: str) -> None:
    row_format, content, start = MALFORMED_ROWS[kind]
    content = content if isinstance(content, bytes) else content.encode()
    good = GOOD_ROWS[row_format]
    pairs = read(tmp_path, lines(good).encode() + content.strip() + b"\n" + lines(good).encode(), row_format)
    assert pairs["source"].tolist() == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert pairs["fault"].isna().tolist() == [True, False, True]
    (line,) = faults(pairs)
    assert line.startswith(f"a.jsonl:2:{start}")
    assert "\n" not in line
    line.encode()  # it can be printed
    assert pairs.loc[1, PAIRS.names].drop("source").isna().all()


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", b"", "a.jsonl: has no rows"),
        ("a.jsonl", b"\n \n", "a.jsonl: has no rows"),
        ("a.json", b"[]", "a.json: has no rows"),
        ("a.json", b"[", "a.json:1: not JSON"),
        ("a.json", json.dumps([GOOD, GOOD]).encode()[:-20], "a.json:2: not JSON"),
        ("a.json", b"[%s,]" % json.dumps(GOOD).encode(), "a.json:2: not JSON"),
        ("a.json", b"[%s] x" % json.dumps(GOOD).encode(), "a.json:1: not JSON"),
        ("a.json", b"[" * 100_000, "a.json:1: not usable JSON"),
        ("a.jsonl.gz", lines(GOOD).encode(), "a.jsonl.gz: not a complete gzip file"),
        ("a.jsonl.gz", gzip.compress(lines(GOOD).encode() * 99, mtime=0)[:-9], "a.jsonl.gz: not a complete gzip file"),
        ("a.csv", b"", "a.csv: has no rows"),
        ("a.csv", b"prompt,chosen,rejected\n", "a.csv: has no rows"),
        ("a.csv", b"prompt,chosen,chosen\np,c,r\n", "a.csv:header:chosen: the column occurs 2 times"),
        ("a.csv", b'prompt,chosen,rejected\np,c,r\np,c,"r', "a.csv:2: not CSV"),
        ("a.parquet", b"PAR1", "a.parquet:1: not readable parquet"),
        ("a.txt", b"x", "a.txt: not .json"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, content, name=name)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_a_csv_row_with_too_few_cells_is_one_line(tmp_path: Path) -> None:
    pairs = read(tmp_path, "prompt,chosen,rejected\np,c,r\np,c\n", name="a.csv")
    assert faults(pairs) == ["a.csv:2: 2 cells under a header of 3; quote cells that contain commas or line breaks"]


def test_nulls_and_wrong_types_in_parquet_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["p", "p"], "chosen": ["c", None], "rejected": [1, 2]}), tmp_path / "a.parquet")
    assert [fault.split(";")[0] for fault in faults(read_pairs(tmp_path, "plain"))] == [
        "a.parquet:1:rejected: a number where text is needed",
        "a.parquet:2:chosen: null where text is needed",
    ]


def test_a_row_in_another_format_names_the_expected_and_its_own_keys(tmp_path: Path) -> None:
    (line,) = faults(read(tmp_path, lines(GOOD), "sharegpt"))
    assert line == (
        "a.jsonl:1:conversations: missing; format sharegpt needs conversations, chosen, rejected, "
        "and the row has prompt, chosen, rejected; fix the row or set validate_pairs.format"
    )


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files"):
        read_pairs(tmp_path, "plain")


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "sub/a.jsonl", "a.jsonl"):
        (tmp_path / name).write_text(lines(GOOD | {"chosen": name}))
    pairs = read_pairs(tmp_path, "plain")
    assert pairs["source"].tolist() == ["a.jsonl:1", "b.jsonl:1", "sub/a.jsonl:1"]


def test_the_id_depends_on_the_content_only(tmp_path: Path) -> None:
    rows = [GOOD, GOOD, GOOD | {"preference": 0.5}, GOOD | {"chosen": "r", "rejected": "c"}]
    ids = read(tmp_path, lines(*rows))["id"]
    assert ids[0] == ids[1]
    assert ids.nunique() == 3
    assert ids.str.fullmatch("[0-9a-f]{16}").all()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(st.characters())
    | st.text(st.characters(codec=None)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "from", "value", "content", "text"]), inner)
    ),
    max_leaves=6,
)
rows = st.dictionaries(
    st.sampled_from(
        [
            *(
                "prompt",
                "conversations",
                "context",
                "chosen",
                "rejected",
                "completion",
                "label",
                "instruction",
                "output",
            ),
            *("preference", "votes_chosen", "votes_rejected", "ratings_chosen", "ratings_rejected"),
        ]
    ),
    json_values,
    min_size=2,
)
texts = st.lists(rows | json_values, max_size=4).map(lambda values: "\n".join(json.dumps(value) for value in values))
contents = (
    st.binary(max_size=200)
    | texts.map(str.encode)
    | st.tuples(texts.map(str.encode), st.binary(max_size=3), st.integers(0, 100)).map(
        lambda parts: parts[0][: parts[2]] + parts[1] + parts[0][parts[2] :]
    )
)


@pytest.mark.slow
@given(
    contents, st.sampled_from(["auto", *ROW_FORMATS]), st.sampled_from(["json", "jsonl", "csv", "jsonl.gz", "parquet"])
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_give_rows_of_the_schema_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, row_format: str, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    try:
        pairs = read(folder, content, row_format, f"a.{suffix}")
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        return
    good = pairs[pairs["fault"].isna()]
    write_pairs(folder / "out.parquet", good)
    for row in pq.read_table(folder / "out.parquet").to_pylist():
        sides = [row.pop("chosen"), row.pop("rejected")]
        assert sum(side is None for side in sides) == 0 or row_format in ("auto", "unpaired", "kto")
        assert all(row[name] is not None for name in ("id", "source", "prompt", "preference"))
        assert row["prompt"][-1]["role"] in ("user", "tool")
    assert all(line.startswith(f"a.{suffix}:") and "\n" not in line for line in faults(pairs))


@pytest.mark.slow
@hh_rlhf_files
def test_hh_rlhf_as_it_is_published(tmp_path: Path, file: Path | None) -> None:
    """Joining prompt and response again gives the original row."""
    if file is None:
        name, content = "rows.jsonl.gz", gzip.compress(transcripts(300).encode())
        bad_rows = [30, 31, 299]
    else:
        name, content = file.name, file.read_bytes()
        # By an independent count: two prompts that differ in a reply, and rows whose prompt ends with one.
        bad_rows = [1254, 1688, 1950, 1952]
    pairs = read(tmp_path, content, "hh-rlhf", name)
    assert len(pairs) == (300 if file is None else 2000)
    bad = pairs[pairs["fault"].notna()]
    assert bad["source"].tolist() == [f"{name}:{row + 1}" for row in bad_rows]
    raw = [json.loads(line) for line in gzip.decompress(content).decode().split("\n") if line]
    for (_, pair), row in zip(pairs.iterrows(), raw, strict=True):
        if isinstance(pair["fault"], str):
            continue
        names = {"user": "Human", "assistant": "Assistant"}
        prompt = "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in pair["prompt"])
        assert row == {side: f"{prompt}\n\nAssistant: {pair[side]}" for side in ("chosen", "rejected")}
