"""Every format of rows: what is in a row comes out, whatever its format; what is not understood is named."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pandas as pd
import pytest
import yaml
from paths import ROOT

from prefdag.config.validate_pairs import FormatName
from prefdag.formats.registry import ROW_FORMATS, spelled
from prefdag.lifecycle.errors import DataError
from prefdag.pairs.schema import ignored_columns, read_pairs, repeat_prompt, write_pairs

Messages = list[dict[str, str]]


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(folder: Path, *rows: Any, row_format: str = "auto", name: str = "a.jsonl", **options: Any) -> pd.DataFrame:
    (folder / name).write_text(lines(*rows))
    return read_pairs(folder, row_format, **options)


def said(*contents: str, system: str | None = None, **extra: Any) -> Messages:
    """A dialogue that the user begins."""
    front = [] if system is None else [{"role": "system", "content": system}]
    return front + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def answer(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]


def sharegpt(*contents: str) -> Messages:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(contents)]


def fault(pairs: pd.DataFrame) -> str:
    """The only fault, as COLUMN: reason."""
    ((column, reason),) = pairs[["fault_column", "fault"]].dropna(subset="fault").to_numpy().tolist()
    return f"{column}: {reason}"


class Case(NamedTuple):
    """The rows of a file, and what the first pair of it is."""

    format: str
    rows: list[dict[str, Any]]
    prompt: Messages
    chosen: str | None = "c"
    rejected: str | None = "r"
    preference: float = 1.0
    ignored: tuple[str, ...] = ()


SIDES = {"chosen": "c", "rejected": "r"}
REPLIES = {"chosen": answer("c"), "rejected": answer("r")}
ULTRA = {"chosen": said("p", "c"), "rejected": said("p", "r")}
HELP = {"helpfulness": 1, "correctness": 1}
CASES = {
    "plain": Case("plain", [{"prompt": "p", **SIDES}], said("p")),
    "plain-turns": Case("plain", [{"prompt": said("a", "b", "p"), **REPLIES}], said("a", "b", "p")),
    "plain-system": Case("plain", [{"system": "s", "prompt": "p", **SIDES}], said("p", system="s")),
    "plain-history": Case("plain", [{"prompt": "p", "history": [["a", "b"]], **SIDES}], said("a", "b", "p")),
    "plain-transcript": Case(
        "plain",
        [{"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: p\n\nAssistant:", "chosen": " c", "rejected": " r"}],
        *(said("a", "b", "p"), " c", " r"),
    ),
    "sharegpt": Case(
        "sharegpt",
        [
            {
                "conversations": sharegpt("p"),
                "chosen": {"from": "gpt", "value": "c"},
                "rejected": {"from": "gpt", "value": "r"},
                "system": "s",
            }
        ],
        said("p", system="s"),
    ),
    "sharegpt-texts": Case("sharegpt", [{"conversations": sharegpt("a", "b", "p"), **SIDES}], said("a", "b", "p")),
    "axolotl": Case(
        "axolotl",
        [{"messages": said("p", system="s"), "chosen": answer("c")[0], "rejected": answer("r")[0]}],
        said("p", system="s"),
    ),
    "openai": Case(
        "openai",
        [
            {
                "input": {"messages": said("p"), "tools": [], "parallel_tool_calls": True},
                "preferred_output": answer("c"),
                "non_preferred_output": answer("r"),
            }
        ],
        said("p"),
        ignored=("input.parallel_tool_calls",),
    ),
    "openai-as-json": Case(
        "openai",
        [
            {
                "input": json.dumps({"messages": said("p"), "tools": []}),
                "preferred_output": json.dumps(answer("c")),
                "non_preferred_output": json.dumps(answer("r")),
            }
        ],
        said("p"),
    ),
    "argilla": Case(
        "argilla",
        [
            {
                "source": "evol",
                "instruction": "p",
                "chosen_response": "c",
                "rejected_response": "r",
                "chosen_avg_rating": 4.5,
                "rejected_avg_rating": 2,
                "chosen_model": "m",
            }
        ],
        said("p"),
        ignored=("chosen_model",),
    ),
    "argilla-cleaned": Case(
        "plain",
        [{"prompt": "p", **ULTRA, "chosen-rating": 5.0, "rejected-rating": 4, "chosen-model": "m"}],
        said("p"),
        ignored=("chosen-model",),
    ),
    "shp": Case(
        "shp",
        [
            {
                "history": "p",
                "human_ref_A": "r",
                "human_ref_B": "c",
                "labels": 0,
                "score_A": 2,
                "score_B": 6,
                "score_ratio": 3.0,
                "domain": "askculinary",
            }
        ],
        said("p"),
        preference=0.75,
        ignored=("domain",),
    ),
    "helpsteer3": Case(
        "helpsteer3",
        [
            {
                "context": said("a", "b", "p"),
                "response1": "c",
                "response2": "r",
                "overall_preference": -2,
                "individual_preference": [{"score": -2, "reasoning": "x"}],
            }
        ],
        said("a", "b", "p"),
        ignored=("individual_preference",),
    ),
    "helpsteer2-preference": Case(
        "helpsteer3",
        [{"prompt": "p", "response_1": "r", "response_2": "c", "preference_strength": 1, "split": "train"}],
        said("p"),
    ),
    "helpsteer-tie": Case(
        "helpsteer3",
        [{"prompt": "p", "response_1": "c", "response_2": "r", "preference_strength": 0}],
        said("p"),
        preference=0.5,
    ),
    "helpsteer2": Case(
        "helpsteer2",
        [
            {"prompt": "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\np", "response": "r", **HELP},
            {
                "prompt": "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\np",
                "response": "c",
                **HELP | {"helpfulness": 4},
            },
        ],
        said("a", "b", "p"),
        ignored=("correctness",),
    ),
    "safe-rlhf": Case(
        "safe-rlhf",
        [
            {
                "prompt": "p",
                "response_0": "r",
                "response_1": "c",
                "is_response_0_safe": False,
                "response_0_harm_category": {"Insulting Behavior": True, "Violence": False},
                "better_response_id": 1,
                "safer_response_id": 0,
            }
        ],
        said("p"),
        ignored=("is_response_0_safe", "response_0_harm_category", "safer_response_id"),
    ),
    "arena": Case(
        "arena",
        [
            {
                "question_id": "x",
                "model_a": "m",
                "conversation_a": said("p", "r"),
                "conversation_b": said("p", "c"),
                "winner": "model_b",
                "turn": 1,
            }
        ],
        said("p"),
        ignored=("model_a", "question_id", "turn"),
    ),
    "arena-tie": Case(
        "arena",
        [
            {
                f"conversation_{side}": [
                    *said("p"),
                    {"role": "assistant", "content": [{"type": "text", "text": text, "image": None}]},
                ]
                for side, text in (("a", "c"), ("b", "r"))
            }
            | {"winner": "tie (bothbad)"}
        ],
        said("p"),
        preference=0.5,
    ),
    "versus": Case("versus", [{"prompt": "p", "response_a": "r", "response_b": "c", "winner": "B"}], said("p")),
    "versus-55k": Case(
        "versus",
        [
            {
                "prompt": '["p"]',
                "response_a": '["c"]',
                "response_b": '["r"]',
                "winner_model_a": 0,
                "winner_model_b": "0",
                "winner_tie": 1,
            }
        ],
        said("p"),
        preference=0.5,
    ),
    "pku": Case(
        "pku",
        [
            {
                "context": [{"role": "human", "text": "p"}],
                "chosen": {"role": "assistant", "text": "c"},
                "rejected": {"role": "assistant", "text": "r"},
            }
        ],
        said("p"),
    ),
    "alpaca": Case("alpaca", [{"instruction": "i", "input": "x", "output": "c", "rejected": "r"}], said("i\n\nx")),
    "alpaca-chosen": Case(
        "alpaca",
        [{"instruction": "i", "input": "", "output": "r", **SIDES, "system": "s", "history": [["a", "b"]]}],
        said("a", "b", "i", system="s"),
        ignored=("output",),
    ),
    "orca": Case("orca", [{"system": "", "question": "p", **SIDES}], said("p")),
    "orca-distilabel": Case(
        "orca",
        [{"system": "s", "input": "p", **SIDES, "generations": ["c", "r"], "rating": [9.0, 7.0], "order": ["x", "y"]}],
        said("p", system="s"),
        ignored=("generations", "order", "rating"),
    ),
    "messages": Case("messages", [ULTRA | {"score_chosen": 8.0, "score_rejected": 6.5}], said("p")),
    "messages-beside": Case(
        "plain", [{"prompt": "p", "messages": ULTRA["chosen"], **ULTRA}], said("p"), ignored=("messages",)
    ),
    "messages-beside-as-json": Case(
        "plain", [{"prompt": "p", "messages": json.dumps(ULTRA["chosen"]), **ULTRA}], said("p"), ignored=("messages",)
    ),
    "messages-as-json": Case("messages", [{key: json.dumps(turns) for key, turns in ULTRA.items()}], said("p")),
    "messages-as-python": Case("messages", [{key: repr(turns) for key, turns in ULTRA.items()}], said("p")),
    "messages-as-numpy": Case(
        "messages", [{key: repr(turns).replace("}, {", "}\n {") for key, turns in ULTRA.items()}], said("p")
    ),
    "hh-rlhf": Case(
        "hh-rlhf",
        [{key: f"\n\nHuman: p\n\nAssistant: {text}" for key, text in SIDES.items()}],
        said("p"),
    ),
    "nectar": Case(
        "nectar",
        [
            {
                "prompt": "\n\nHuman: p\n\nAssistant: ",
                "answers": [
                    {"answer": "r", "model": "x", "rank": 7.0},
                    {"answer": "c", "model": "y", "rank": 1.0},
                    {"answer": "m", "model": "z", "rank": 3.0},
                ],
                "turns": 1,
            }
        ],
        said("p"),
        ignored=("answers[].model", "turns"),
    ),
    "ultrafeedback": Case(
        "ultrafeedback",
        [
            {
                "instruction": "p",
                "completions": [
                    {"response": "m", "overall_score": 5, "critique": "x"},
                    {"response": "c", "overall_score": 8.5},
                    {"response": "r", "overall_score": "2"},
                ],
            }
        ],
        said("p"),
        ignored=("completions[].critique",),
    ),
    "distilabel": Case(
        "distilabel",
        [{"instruction": "p", "generations": ["r", "c", "m"], "ratings": [1, 3, None], "generation_models": ["x"]}],
        said("p"),
        ignored=("generation_models",),
    ),
    "distilabel-tie": Case(
        "distilabel", [{"prompt": "p", "generations": '["c", "r"]', "ratings": "[3, 3]"}], said("p"), preference=0.5
    ),
    "unpaired": Case("unpaired", [{"prompt": "p", "completion": "c", "label": True}], said("p"), rejected=None),
    "unpaired-turns": Case(
        "unpaired",
        [{"prompt": said("p"), "completion": answer("r"), "label": False, "system": "s"}],
        *(said("p", system="s"), None),
    ),
    "unpaired-alpaca": Case(
        "unpaired",
        [{"instruction": "i", "input": "x", "output": "c", "kto_tag": True}],
        said("i\n\nx"),
        rejected=None,
    ),
    "kto": Case("kto", [{"messages": said("p", "c"), "label": True}], said("p"), rejected=None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_format_is_recognised_and_read(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    pairs = read(tmp_path, *case.rows)
    assert pairs["fault"].isna().all(), pairs["fault"].tolist()
    (pair,) = pairs.astype({"chosen": "object", "rejected": "object"}).to_dict("records")
    assert pair["prompt"] == case.prompt
    assert [text if isinstance(text, str) else None for text in (pair["chosen"], pair["rejected"])] == [
        case.chosen,
        case.rejected,
    ]
    assert (pair["preference"], pair["ignored"]) == (case.preference, case.ignored)
    named = read(tmp_path, *case.rows, row_format=case.format)
    pd.testing.assert_frame_equal(named, pairs)


def test_every_list_of_formats_is_that_of_the_registry() -> None:
    """The names that params.yaml may have, the cases above, and the table in the docs with the keys."""
    assert list(get_args(FormatName)) == list(ROW_FORMATS)
    assert {case.format for case in CASES.values()} == set(ROW_FORMATS)
    part = next(p for p in (ROOT / "docs/data.md").read_text("utf-8").split("\n## ") if p.startswith("Formats\n"))
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in part.splitlines() if line.startswith("| ")]
    listed = {name: keys for name, keys in cells if name in ROW_FORMATS}
    assert listed == {name: ", ".join(spelled(known)) for name, known in ROW_FORMATS.items()}


def test_a_format_that_is_unknown_names_the_keys_and_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, {"question": "p", "answer": "c"})
    assert str(error.value) == (
        "a.jsonl:1: no known format: the keys are question, answer; the nearest is orca (question or input or query, "
        "chosen, rejected), which also needs chosen and rejected; map other names with validate_pairs.columns (docs/data.md)"
    )
    with pytest.raises(
        DataError, match="no known format: the keys are chosen, rejected; the nearest is messages"
    ) as error:
        read(tmp_path, SIDES)
    assert "need a prompt too" in str(error.value)


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("Prompt", "Chosen", "Rejected"), "{prompt: Prompt, chosen: Chosen, rejected: Rejected}"),
        (("prompt", " chosen", "rejected "), '{chosen: " chosen", rejected: "rejected "}'),
        (("prompt", "text_chosen", "reject"), "{chosen: text_chosen, rejected: reject}"),
    ],
)
def test_other_spellings_of_the_keys_are_suggested_and_can_be_mapped(
    tmp_path: Path, names: tuple[str, ...], columns: str
) -> None:
    row = dict(zip(names, "pcr", strict=True))
    with pytest.raises(DataError) as error:
        read(tmp_path, row)
    assert f"; if these are its columns, set validate_pairs.columns to {columns} (docs/data.md)" in str(error.value)
    assert read(tmp_path, row, columns=yaml.safe_load(columns))[["chosen", "rejected"]].to_numpy().tolist() == [
        ["c", "r"]
    ]


def test_the_first_rows_decide_and_each_file_has_its_own_format(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(lines({"question": "p", **SIDES}))
    pairs = read(tmp_path, {"odd": 1}, {"prompt": "p", **SIDES}, {"prompt": "q", **SIDES})
    assert pairs["source"][pairs["fault"].isna()].tolist() == ["a.jsonl:2", "a.jsonl:3", "b.jsonl:1"]


@pytest.mark.parametrize(
    ("winner", "chosen", "preference"),
    [
        *((text, "a", 1.0) for text in ("a", "A", "model_a", "Model A", "response_a", "[[A]]", " assistant_a\n")),
        *((text, "b", 1.0) for text in ("b", "model_b", "answer b")),
        *((text, "a", 0.5) for text in ("tie", "Tie (bothbad)", "both_bad", "[[C]]")),
    ],
)
def test_the_winner_in_its_spellings(tmp_path: Path, winner: str, chosen: str, preference: float) -> None:
    row = {"conversation_a": said("p", "a"), "conversation_b": said("p", "b"), "winner": winner}
    (pair,) = read(tmp_path, row).to_dict("records")
    assert (pair["chosen"], pair["preference"]) == (chosen, preference)


ARENA = {f"conversation_{side}": said("p", side) for side in "ab"}
VERSUS = {"prompt": "p", "response_a": "a", "response_b": "b"}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (ARENA | {"winner": "gpt-4"}, "winner: unknown winner 'gpt-4'; use model_a, model_b or tie"),
        (ARENA | {"winner": ["model_a"]}, "winner: a list where text is needed"),
        (ARENA | {"winner": "tie", "conversation_b": said("q", "b")}, "conversation_b: not the same prompt as conver"),
        (ARENA | {"winner": "tie", "conversation_b": said("p")}, "conversation_b: ends with a user turn"),
        (
            VERSUS | {"winner_model_a": 1, "winner_model_b": 1},
            "winner_model_a: 2 of winner_model_a, winner_model_b and w",
        ),
        (
            VERSUS | {"winner_model_a": 1, "response_a": '["a", "b"]'},
            "response_a: 2 turns; the responses of the earlier",
        ),
        (
            {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": -1},
            "better_response_id: -1 is no",
        ),
    ],
)
def test_a_comparison_that_cannot_be_read_is_named(tmp_path: Path, row: dict[str, Any], line: str) -> None:
    assert fault(read(tmp_path, row)).startswith(line)


# What is not read


def test_what_is_not_read_is_counted_by_its_path(tmp_path: Path) -> None:
    turns = {side: [turn | {"weight": 1} for turn in said("p", side)] for side in SIDES}
    rows = [turns | {"id": 1, "meta": {"a": 1}}, turns | {"id": 2, "meta": None}, turns | {"id": None}]
    assert ignored_columns(read(tmp_path, *rows)) == {
        "chosen[].weight": 3,
        "rejected[].weight": 3,
        "id": 2,
        "meta": 1,
    }


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "p", **SIDES, "images": ["a.jpg"]}, "images"),
        ({"prompt": "p", **SIDES, "context": "the text that is asked about"}, "context"),
        ({"prompt": "p", **SIDES, "thinking": "hm"}, "thinking"),
        ({"prompt": "Summarise this.", **SIDES, "input": "a long text"}, "input"),
        ({"prompt": "p", **SIDES, "Reasoning-Content": "hm"}, "Reasoning-Content"),
        ({"prompt": [said("p")[0] | {"tool_calls": [{"name": "f"}]}], **SIDES}, "prompt[0].tool_calls"),
        ({"prompt": "p", **REPLIES | {"chosen": [answer("c")[0] | {"images": ["x"]}]}}, "chosen[0].images"),
        ({"prompt": "p", "completion": "c", "label": True, "videos": ["x"]}, "videos"),
        ({"conversations": sharegpt("p"), **SIDES, "functions": '[{"name": "f"}]'}, "functions"),
    ],
)
def test_known_content_that_is_not_read_makes_the_row_invalid(tmp_path: Path, row: dict[str, Any], column: str) -> None:
    assert fault(read(tmp_path, row)).startswith(f"{column}: format ")


def test_known_content_without_content_is_no_fault(tmp_path: Path) -> None:
    empty = {
        "images": [],
        "videos": "[]",
        "tools": None,
        "context": " ",
        "history": [],
        "system": None,
        "thinking": "nan",
    }
    pairs = read(tmp_path, {"prompt": "p", **SIDES, **empty})
    assert pairs["fault"].isna().all()
    assert pairs["ignored"].tolist() == [()]


def test_responses_that_repeat_the_prompt_are_counted(tmp_path: Path) -> None:
    """A whole text as the response: the prompt would be read, and then scored once more."""
    question = "What is a mill?"
    rows = [
        {"prompt": question, "chosen": f"{question}\nA machine.", "rejected": f" {question} No idea."},
        {"prompt": question, "chosen": f"{question}\nA machine.", "rejected": "No idea."},
        {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi"},
        {"prompt": question, "chosen": None, "rejected": None},
    ]
    assert repeat_prompt(read(tmp_path, *rows)) == 1


# System texts, history, tools, calls and reasoning


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.format != "helpsteer2"])
def test_system_and_tools_in_every_format(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    row = case.rows[0] | {"system": "s", "tools": '[{"name": "look"}]'}
    (pair,) = read(tmp_path, row).to_dict("records")
    body = [turn for turn in case.prompt if turn["role"] != "system"]
    assert pair["prompt"] == [{"role": "system", "content": "s"}, *body]
    assert json.loads(pair["tools"]) == [{"name": "look"}]


def test_a_system_text_that_differs_from_the_dialogues_is_named(tmp_path: Path) -> None:
    rows = [{"system": text, "prompt": said("p", system="s"), **SIDES} for text in ("s", "t")]
    pairs = read(tmp_path, *rows)
    assert pairs["prompt"][0] == said("p", system="s")
    assert fault(pairs) == "system: 't', but the dialogue's system turn says 's'; keep one of them"


def test_history_in_its_forms(tmp_path: Path) -> None:
    forms: list[Any] = [[["a", "b"], ["d", "e"]], json.dumps([["a", "b"], ["d", "e"]]), said("a", "b", "d", "e")]
    row = {"prompt": said("p", system="s"), **SIDES}
    pairs = read(tmp_path, *(row | {"history": form} for form in forms), row | {"history": [["a"]]})
    assert pairs["prompt"][:3].tolist() == [said("a", "b", "d", "e", "p", system="s")] * 3
    assert fault(pairs).startswith("history[0]: 1 values where [user, assistant]")


CALL = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"q": "x"}}}


def test_calls_results_and_reasoning_are_kept(tmp_path: Path) -> None:
    as_text = CALL | {"function": {"name": "look", "arguments": '{"q": "x"}'}}
    asked = [
        *said("p"),
        {"role": "assistant", "content": None, "tool_calls": [as_text]},
        {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "found"},
    ]
    better = {"role": "assistant", "content": "c", "reasoning_content": "hm"}
    worse = {"role": "assistant", "content": None, "tool_calls": [as_text]}
    pairs = read(tmp_path, {"prompt": asked, "chosen": [better], "rejected": [worse], "tools": [{"name": "look"}]})
    (pair,) = pairs.to_dict("records")
    assert pairs["fault"].isna().all(), fault(pairs)
    user, calls, result = pair["prompt"]
    assert user == said("p")[0]
    assert (calls["role"], calls["content"], json.loads(calls["extra"])) == ("assistant", "", {"tool_calls": [CALL]})
    assert (result["content"], json.loads(result["extra"])) == ("found", {"tool_call_id": "c1", "name": "look"})
    assert (pair["chosen"], json.loads(pair["chosen_extra"])) == ("c", {"reasoning_content": "hm"})
    assert (pair["rejected"], json.loads(pair["rejected_extra"])) == ("", {"tool_calls": [CALL]})
    write_pairs(tmp_path / "out.parquet", pairs)
    (stored,) = pd.read_parquet(tmp_path / "out.parquet").to_dict("records")
    assert [turn["extra"] for turn in stored["prompt"]] == [None, calls["extra"], result["extra"]]


def test_the_tool_turns_of_sharegpt(tmp_path: Path) -> None:
    turns = [
        *sharegpt("p"),
        {"from": "function_call", "value": '{"name": "look", "arguments": {"q": "x"}}'},
        {"from": "observation", "value": "found"},
    ]
    (pair,) = read(tmp_path, {"conversations": turns, **SIDES, "tools": "[]"}).to_dict("records")
    assert [turn["role"] for turn in pair["prompt"]] == ["user", "assistant", "tool"]
    bare = {key: value for key, value in CALL.items() if key != "id"}
    assert json.loads(pair["prompt"][1]["extra"]) == {"tool_calls": [bare]}


@pytest.mark.parametrize(
    ("turn", "line"),
    [
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "chosen[0].tool_calls[0].function.arguments: text",
        ),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "chosen[0].tool_calls[0].function.arguments: a li",
        ),
        ({"tool_calls": [{"type": "custom", "name": "f"}]}, "chosen[0].tool_calls[0].type: 'custom' calls are not"),
        ({"tool_calls": [{"function": {"arguments": "{}"}}]}, "chosen[0].tool_calls[0].function.name: missing"),
        ({"content": None}, "chosen[0].content: null where text"),
        ({"content": [{"type": "image_url", "image_url": "x"}]}, "chosen[0].content[0]: a part of type 'image_url'"),
        ({"content": {"type": "image", "image": "x"}}, "chosen[0].content: a part of type 'image'; only text can be"),
        ({"value": "other"}, "chosen[0].value: the row has chosen[0].content too"),
        ({"thinking": 3}, "chosen[0].thinking: a number where text"),
        (
            {"thinking": "a", "reasoning_content": "b"},
            "chosen[0].thinking: the row has chosen[0].reasoning_content too",
        ),
    ],
)
def test_a_turn_that_cannot_be_read_is_named(tmp_path: Path, turn: dict[str, Any], line: str) -> None:
    row = {"prompt": "p", "chosen": [answer("c")[0] | turn], "rejected": answer("r")}
    assert fault(read(tmp_path, row)).startswith(line)


def test_parts_of_text_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, "c"]
    assert read(tmp_path, {"prompt": [{"role": "user", "content": parts}], **SIDES})["prompt"][0] == said("abc")
    assert read(tmp_path, {"prompt": [{"role": "user", "content": parts[0]}], **SIDES})["prompt"][0] == said("a")


@pytest.mark.parametrize("text", ["[1, 2]", '{"role": "admin"}', '[{"name": "a"}]', "{'a': 1}", "[{", "[{'a'"])
def test_a_text_that_is_no_dialogue_stays_a_text(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, {"prompt": text, "chosen": text, "rejected": "r"})["chosen"].tolist() == [text]


def test_a_dialogue_as_text_that_is_cut_is_named(tmp_path: Path) -> None:
    row = {"prompt": json.dumps(said("p"))[:-3], **SIDES}
    assert fault(read(tmp_path, row)).startswith("prompt: starts like a list of turns, but is neither JSON nor")
    row = {"prompt": "p", "generations": "['c' 'r']", "ratings": [1, 2]}
    assert fault(read(tmp_path, row, row_format="distilabel")).startswith("generations: text that is neither JSON nor")


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (["c"], "chosen[0]: text where a turn is needed, an object with role and content"),
        (
            {"text": "c", "score": 8},
            "chosen.role: missing; a turn needs role and content; or name the text in validate_pairs.columns, as chosen.KEY",
        ),
    ],
)
def test_a_response_in_another_form_is_named(tmp_path: Path, value: Any, line: str) -> None:
    row = {"prompt": "p", "chosen": value, "rejected": "r"}
    assert fault(read(tmp_path, row)) == line


# A prompt beside whole dialogues


@pytest.mark.parametrize(
    ("prompt", "before", "whole"),
    [
        ("p", said("p"), said("p")),
        ("p\n", said("p"), said("p")),
        (said("p", system="s"), said("p"), said("p", system="s")),
        ("p", said("p", system="s"), said("p", system="s")),
        ("p", said("a", "b", "p"), said("a", "b", "p")),
        ("a", said("a", "b", "p"), said("a", "b", "p")),
        (said("a", "b", "p"), said("p"), said("a", "b", "p")),
        ("q", said("p"), "'q' and 'p'"),
        (said("p", system="s"), said("p", system="t"), "'s' and 't'"),
        (said("a", "b", "p"), said("a", "x", "p"), "'p' and 'p'"),
    ],
)
@pytest.mark.parametrize("kind", ["pair", "single", "sharegpt"])
def test_a_prompt_beside_a_dialogue_agrees_or_the_row_is_invalid(
    tmp_path: Path, kind: str, prompt: Any, before: Messages, whole: Any
) -> None:
    rows: dict[str, dict[str, Any]] = {
        "pair": {side: before + answer(side) for side in SIDES},
        "single": {"completion": before + answer("c"), "label": True},
        "sharegpt": {"conversations": before, **SIDES},
    }
    pairs = read(tmp_path, {"prompt": prompt, **rows[kind]})
    if isinstance(whole, str):
        assert re.match(r"prompt: differs from the turns before the response in \w+: ", fault(pairs))
        assert whole in fault(pairs)
    else:
        assert pairs["prompt"].tolist() == [whole]


def test_responses_that_go_on_for_several_turns(tmp_path: Path) -> None:
    """As TRL reads them: after a prompt of one turn, both have the same turns but for the last one."""
    more = [*answer("a"), *said("b")]
    row = {"prompt": said("p", system="s"), "chosen": more + answer("c"), "rejected": more + answer("r")}
    (pair,) = read(tmp_path, row).to_dict("records")
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (said("p", "a", "b", system="s"), "c", "r")


@pytest.mark.parametrize("start", ["\n\n", ""])
def test_a_transcript_with_and_without_line_breaks_in_front(tmp_path: Path, start: str) -> None:
    rows = {key: f"{start}Human: a\n\nAssistant: b\n\nHuman: p\n\nAssistant: {text}" for key, text in SIDES.items()}
    prompt = f"{start}Human: a\n\nAssistant: b\n\nHuman: p\n\nAssistant:"
    pairs = pd.concat([read(tmp_path, row) for row in (rows, {"prompt": prompt, **SIDES})])
    assert pairs["prompt"].tolist() == [said("a", "b", "p")] * 2
    assert read(tmp_path, {"prompt": "Human: a word", **SIDES})["prompt"].tolist() == [said("Human: a word")]


@pytest.mark.parametrize(
    ("label", "is_good"),
    [
        *(
            (value, True)
            for value in (True, 1, 1.0, "True", " TRUE ", "1", "1.0", "yes", "Good", "desirable", "thumbs_up")
        ),
        *((value, False) for value in (False, 0, "false", "0", "no", "bad", "Undesirable", "negative", "rejected")),
        *((value, None) for value in (2, -1, "neutral", "", None, [True])),
    ],
)
def test_labels_in_their_spellings(tmp_path: Path, label: Any, is_good: bool | None) -> None:
    (pair,) = read(tmp_path, {"prompt": "p", "completion": "x", "label": label}, row_format="unpaired").to_dict(
        "records"
    )
    if is_good is None:
        assert pair["fault_column"] == "label"
        assert pair["fault"].endswith("where true or false is needed; write true for a desirable completion")
    else:
        assert [isinstance(pair[side], str) for side in SIDES] == [is_good, not is_good]


# Scores


@pytest.mark.parametrize(
    "names", ["score_{}", "{}_score", "{}_rating", "rating_{}", "{}-rating", "{}_avg_rating", "{}-score", "reward_{}"]
)
def test_scores_in_their_spellings(tmp_path: Path, names: str) -> None:
    scores = {names.format("chosen"): 2.0, names.format("rejected"): "1"}
    pairs = read(tmp_path, {"prompt": "p", **SIDES, **scores})
    assert pairs[["score_chosen", "score_rejected", "preference"]].to_numpy().tolist() == [[2.0, 1.0, 1.0]]
    assert pairs["ignored"].tolist() == [()]


def test_scores_that_are_no_numbers_are_listed(tmp_path: Path) -> None:
    pairs = read(tmp_path, {"prompt": "p", **SIDES, "score_chosen": "good", "score_rejected": [1]})
    assert pairs["ignored"].tolist() == [("score_chosen", "score_rejected")]


def test_ratings_of_prompts_that_are_not_beside_each_other(tmp_path: Path) -> None:
    rows = [{"prompt": text, "response": text, "helpfulness": 1} for text in "pqp"]
    assert set(read(tmp_path, *rows)["fault"]) == {
        "no row beside this one has the same prompt, and a pair needs two; sort the rows by prompt"
    }


def test_scores_as_the_preference(tmp_path: Path) -> None:
    """sigmoid((8 - 6) / 2) = 0.731, a tie is 0.5, an inversion is below it; rows without scores prefer chosen."""
    scores = [(8, 6), (6, 6), (1, 3), (None, 3)]
    rows = [{"prompt": f"p{i}", **SIDES, "score_chosen": a, "score_rejected": b} for i, (a, b) in enumerate(scores)]
    pairs = read(tmp_path, *rows, score_scale=2.0)
    assert pairs["preference"].tolist() == pytest.approx([0.731059, 0.5, 0.268941, 1.0], abs=1e-6)
    assert pairs["score_chosen"].isna().all()  # there is nothing to compare them with
    row = rows[0] | {"score_rejected": "7,5"}
    assert fault(read(tmp_path, row, score_scale=2.0)).startswith(
        "score_rejected: not a finite number, but score_scale"
    )
    row = rows[0] | {"preference": 0.9}
    assert fault(read(tmp_path, row, score_scale=2.0)).startswith("preference: the row gives a preference and scores")


# Other names: validate_pairs.columns


def test_columns_map_other_names_by_path(tmp_path: Path) -> None:
    row = {
        "ask": {"text": "p"},
        "answers": [{"text": "c", "points": 3}, {"text": "r", "points": 1, "by": "x"}],
        "context": "s",
        "thinking": "about other things",
    }
    columns = {
        "prompt": "ask.text",
        "chosen": "answers.0.text",
        "rejected": "answers.-1.text",
        "system": "context",
        "score_chosen": "answers.0.points",
        "score_rejected": "answers.1.points",
        "thinking": None,
    }
    (pair,) = read(tmp_path, row, columns=columns).to_dict("records")
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (said("p", system="s"), "c", "r")
    assert (pair["score_chosen"], pair["ignored"]) == (3.0, ("answers[].by",))
    bad = row | {"answers": [{"text": 3}, {"text": "r"}]}
    assert fault(read(tmp_path, row, bad, columns=columns)).startswith("answers[0].text: a number where text")


def test_columns_map_any_of_our_names(tmp_path: Path) -> None:
    row = {"q": "p", "a": "c", "good": "1", "part": "valid", "who": 7, "site": "w"}
    columns = {"prompt": "q", "completion": "a", "label": "good", "split": "part", "annotator": "who", "source": "site"}
    (pair,) = read(tmp_path, row, columns=columns).to_dict("records")
    assert [pair[name] for name in ("chosen", "split", "annotator", "origin")] == ["c", "val", "7", "w"]


def test_a_path_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    row = {"question": "p", "answers": [{"text": "c"}]}
    with pytest.raises(DataError) as error:
        read(tmp_path, row, columns={"prompt": "question", "chosen": "answers.0.txt"})
    assert str(error.value) == (
        "a.jsonl: validate_pairs.columns.chosen: 'answers.0.txt' is in none of the first rows; did you mean 'answers.0.text'?"
    )


# Sources and splits


@pytest.mark.parametrize(
    ("source", "origin"),
    [({"name": "w", "at": 1}, '{"name":"w","at":1}'), (["w"], '["w"]'), (True, "true"), (1.5, "1.5")],
)
def test_a_source_of_any_kind_is_an_origin(tmp_path: Path, source: Any, origin: str) -> None:
    assert read(tmp_path, {"prompt": "p", **SIDES, "source": source})["origin"].tolist() == [origin]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("data/test-00000-of-00002.jsonl", "test"),
        ("test_prefs.jsonl", "test"),
        ("dev/a.jsonl", "val"),
        ("train/validation.jsonl", "val"),
        ("eval.jsonl", "val"),
        ("holdout-0.jsonl", "test"),
        ("contest.jsonl", None),
        ("train_test.jsonl", None),
    ],
)
def test_the_split_of_a_file_or_folder(tmp_path: Path, name: str, split: str | None) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(lines({"prompt": "p", **SIDES}))
    assert [value if isinstance(value, str) else None for value in read_pairs(tmp_path, "auto")["split"]] == [split]
    assert read_pairs(tmp_path, "auto", columns={"split": None})["split"].isna().all()


def test_the_split_of_a_row(tmp_path: Path) -> None:
    names = {"train": "train", "Validation": "val", "test_prefs": "test", "dev": "val"}
    rows = [{"prompt": "p", **SIDES, "split": name} for name in [*names, "other"]]
    pairs = read(tmp_path, *rows, name="train.jsonl")
    assert pairs["split"][:4].tolist() == list(names.values())
    assert fault(pairs).startswith("split: unknown split 'other'; use train")
    ids = pairs["id"][:4]
    assert ids.nunique() == 1, "copies in two splits are copies"


def test_ids_tell_apart_what_a_template_reads(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": answer("c"), "rejected": answer("r")}
    call = [answer("c")[0] | {"tool_calls": [CALL]}]
    rows = [row, row | {"tools": [{"name": "f"}]}, row | {"chosen": call}, row | {"system": "s"}]
    assert read(tmp_path, *rows)["id"].nunique() == 4
