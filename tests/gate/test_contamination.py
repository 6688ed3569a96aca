"""Overlaps of pairs with eval sets: by hand, against a brute-force comparison, and on real data."""

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hh_rlhf import hh_rlhf_files, transcripts
from hypothesis import given
from hypothesis import strategies as st
from paths import REAL_DATA, ROOT

from prefdag.gate.contamination import CHUNK, RUN, find_overlaps
from prefdag.pairs.eval_sets import EvalRow, read_eval_sets
from prefdag.pairs.ngrams import words
from prefdag.pairs.schema import read_pairs


def question(number: int, text: str, *answers: str) -> EvalRow:
    prompt = [{"role": "user", "content": text}]
    return EvalRow(
        source=f"q:{number}",
        prompt=prompt,
        response=answers[0],
        right_responses=answers[:1],
        wrong_responses=answers[1:],
    )


def gap(number: int, before: str, *fillings: str) -> EvalRow:
    return EvalRow(
        source=f"g:{number}",
        prompt=before,
        response=fillings[0],
        right_responses=fillings[:1],
        wrong_responses=fillings[1:],
    )


def pairs(*rows: tuple[list[str] | None, str | None, str | None]) -> pd.DataFrame:
    roles = ("user", "assistant")
    turns = [t and [{"role": roles[i % 2], "content": c} for i, c in enumerate(t)] for t, _, _ in rows]
    frame = pd.DataFrame([row[1:] for row in rows], columns=["chosen", "rejected"], dtype="str")
    return frame.assign(source=[f"p:{i}" for i in range(1, len(rows) + 1)], prompt=turns)


def text(start: int, count: int, letter: str = "w") -> str:
    return " ".join(f"{letter}{i}" for i in range(start, start + count))


def test_overlaps_by_hand() -> None:
    sets = {
        "truthfulqa": [
            question(1, "Is it TRUE?", "no"),
            question(2, text(0, 20), text(50, RUN)),
            question(3, "Hi!", "x"),
        ],
        "winogrande": [gap(1, "Ann helped Ben as", " Ann was kind.", " Ben was kind.")],
    }
    overlaps = find_overlaps(
        pairs(
            (["Is it true"], "no", "yes"),  # the question itself; its answer is too short to count
            # Two questions as turns, and a sentence with the wrong filling.
            (["hello", "is it, true?", "Hi"], "Ann helped Ben as Ben was kind", "b"),
            ([text(100, 5) + " " + text(3, RUN)], "a", "b"),  # a run of the second question
            (["a"], text(3, RUN - 1), text(3, RUN - 1) + "."),  # one word too few
            (["a"], "b " + text(50, RUN), None),  # the second question's answer
            ([text(0, 20)], text(3, RUN), "b"),  # the question exactly and a run of it: exact
            (None, None, None),  # unreadable
            (["a", text(0, 6), text(6, RUN - 6)], "b", "c"),  # a run over two turns of the dialogue
        ),
        sets,
    )
    assert overlaps[["set", "row", "pair", "how"]].to_numpy().tolist() == [
        ["truthfulqa", "q:1", "p:1", "exact"],
        ["truthfulqa", "q:1", "p:2", "exact"],
        ["truthfulqa", "q:3", "p:2", "exact"],
        ["winogrande", "g:1", "p:2", "exact"],
        ["truthfulqa", "q:2", "p:3", "13 words"],
        ["truthfulqa", "q:2", "p:5", "13 words"],
        ["truthfulqa", "q:2", "p:6", "exact"],
        ["truthfulqa", "q:2", "p:8", "13 words"],
    ]
    assert overlaps["words"][4] == text(3, RUN)


def test_the_joined_turns_of_a_dialogue_are_compared() -> None:
    two = pairs((["one two", "three"], "a", "b"))
    assert len(find_overlaps(two, {"truthfulqa": [question(1, "One two three?", "no")]})) == 1


@pytest.mark.parametrize("cores", ["1", "3"])
def test_pairs_beyond_the_first_chunk_are_compared(cores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", cores)
    many = pairs(*((["is it true"], "a", "b") for _ in range(CHUNK + 2)))
    overlaps = find_overlaps(many, {"truthfulqa": [question(1, "Is it true?", "no")]})
    assert overlaps["pair"].tolist() == many["source"].tolist()


def test_words_of_scripts_without_spaces() -> None:
    assert words("山は\u3400 高い, 한국어 a1") == ["山", "は", "\u3400", "高", "い", "한국어", "a1"]


def test_without_eval_rows_or_pairs_there_is_no_overlap() -> None:
    for sets in ({}, {"truthfulqa": [question(1, "short", "no")]}):
        assert find_overlaps(pairs((["a"], "b", "c")), sets).empty
    assert find_overlaps(pairs(), {"truthfulqa": [question(1, text(0, 20), "no")]}).empty


WORD = st.sampled_from("ab")
TEXT = st.lists(WORD, max_size=RUN + 4).map(" ".join)


@pytest.mark.slow
@given(st.lists(st.tuples(TEXT, TEXT), max_size=4), st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=4))
def test_overlaps_are_those_of_a_brute_force_comparison(
    asked: list[tuple[str, str]], rows: list[tuple[str, str, str]]
) -> None:
    """With only two different words, long runs are often shared."""
    sets = {"truthfulqa": [question(i, *texts) for i, texts in enumerate(asked)]}
    overlaps = find_overlaps(pairs(*(([p], c, r) for p, c, r in rows)), sets)
    expected = set()
    for i, of_eval in enumerate(asked):
        for j, of_pair in enumerate(rows, 1):
            runs: list[set[Any]] = [
                {tuple(words(t)[k : k + RUN]) for t in texts for k in range(len(words(t)) - RUN + 1)}
                for texts in (of_eval, of_pair)
            ]
            if of_eval[0] in of_pair or runs[0] & runs[1]:
                expected.add((f"q:{i}", f"p:{j}"))
    assert set(overlaps[["row", "pair"]].itertuples(index=False, name=None)) == expected
    assert not overlaps.duplicated(["row", "pair"]).any()


@pytest.mark.slow
@hh_rlhf_files
def test_pku_is_contaminated_by_hh_rlhf(tmp_path: Path, file: Path | None) -> None:
    """PKU's processed-hh-rlhf is hh-rlhf in another format: all of its rows overlap, and almost none of TruthfulQA's."""
    text = transcripts(200) if file is None else gzip.decompress(file.read_bytes()).decode()
    lines = [f"{line}\n" for line in text.split("\n")[:200]]
    questions = ROOT / "evals/misconceptions.csv" if file is None else REAL_DATA / "truthfulqa/TruthfulQA.csv"
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/hh.jsonl").write_text("".join(lines), "utf-8")
    train = read_pairs(tmp_path / "raw", "hh-rlhf")
    evals = tmp_path / "evals"
    for name in ("pku", "truthfulqa"):
        (evals / name).mkdir(parents=True)
    speakers = {"user": "human", "assistant": "assistant"}
    rows = [
        {
            "context": [{"role": speakers[turn["role"]], "text": turn["content"]} for turn in row["prompt"]],
            **{side: {"role": "assistant", "text": row[side]} for side in ("chosen", "rejected")},
        }
        for row in train.dropna(subset=["chosen"]).to_dict("records")
        if row["chosen"].strip() and row["rejected"].strip()
    ]
    (evals / "pku/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (evals / "truthfulqa/a.csv").write_bytes(questions.read_bytes())
    overlaps = find_overlaps(train, read_eval_sets(evals))
    rows_met = overlaps.groupby("set")["row"].nunique()
    assert rows_met["pku"] == len(rows) > 190
    assert rows_met.get("truthfulqa", 0) < 5
