"""The eval sets: their formats, their faults, and the project's own and the published files."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from chat_templates import tokenizer_of
from dialogues import write_byte_tokenizer
from paths import REAL_DATA, ROOT

from prefdag.lifecycle.errors import DataError
from prefdag.pairs.eval_sets import (
    EvalRow,
    cross_entropy_sets,
    ignored_columns,
    read_eval_sets,
    read_preferences,
    read_truthfulqa,
    read_winogrande,
)
from prefdag.text.evaluation.eval_rows import encode_row
from prefdag.tokenizer.tokenizer import ChatTokenizer

HEADER = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
GAP = {"qID": "1", "sentence": "Ann helped Ben as _ was kind.", "option1": "Ann", "option2": "Ben", "answer": "1"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """Bytes, EOS, and a chat template that puts the message between brackets."""
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    folder = tmp_path_factory.mktemp("model")
    return ChatTokenizer(write_byte_tokenizer(folder, ["</s>"], template, merges=(), eos_token="</s>"), "chat")


def csv_file(folder: Path, text: str) -> Path:
    (folder / "set.csv").write_bytes(text.encode())
    return folder


def jsonl_file(folder: Path, *rows: object) -> Path:
    (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_truthfulqa_row(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    # Quoted commas and line breaks, and a blank line, as spreadsheets write them.
    text = HEADER + 'A,B,"Is it,\nreally?",No,No; It is not,Yes; Of course ,C\n\n'
    [row] = read_truthfulqa(csv_file(tmp_path, text))
    assert row.prompt == [{"role": "user", "content": "Is it,\nreally?"}]
    assert row.response == "No"
    assert row.wrong_responses == ("Yes", "Of course")
    prompt_ids, response_ids, end_scored = encode_row(row, tokenizer, 100, 100)
    assert tokenizer.decode(prompt_ids) == "[Is it,\nreally?]"
    assert tokenizer.decode(response_ids) == "No</s>"
    assert end_scored
    assert not encode_row(row, tokenizer, 100, 2).end_scored  # cut
    assert tokenizer.decode(encode_row(row, tokenizer, 100, 100, row.wrong_responses[0]).response_ids) == "Yes</s>"


@pytest.mark.slow
def test_truthfulqa_in_every_format(tmp_path: Path) -> None:
    """The CSV, its multiple-choice JSON, and both configurations of the hub's parquet."""
    right, wrong = ["No", "It is not"], ["Yes", "Of course"]
    targets = dict.fromkeys(right[:1], 1) | dict.fromkeys(wrong, 0), dict.fromkeys(right, 1) | dict.fromkeys(wrong, 0)
    hub = [{"choices": list(labels), "labels": list(labels.values())} for labels in targets]
    generation = {"question": "Is it?", "best_answer": "No", "correct_answers": right, "incorrect_answers": wrong}
    writers = {
        "a.csv": lambda path: path.write_text(HEADER + "A,B,Is it?,No,No; It is not,Yes; Of course,C\n"),
        "a.json": lambda path: path.write_text(
            json.dumps([{"question": "Is it?", "mc1_targets": targets[0], "mc2_targets": targets[1]}])
        ),
        "a.parquet": lambda path: pd.DataFrame([generation]).to_parquet(path),
        "b.parquet": lambda path: pd.DataFrame(
            [{"question": "Is it?", "mc1_targets": hub[0], "mc2_targets": hub[1]}]
        ).to_parquet(path),
    }
    for name, write in writers.items():
        folder = tmp_path / name / "truthfulqa"
        folder.mkdir(parents=True)
        write(folder / name)
        [row] = read_eval_sets(folder.parent)["truthfulqa"]
        assert row.source == f"truthfulqa/{name}:1"
        assert (row.prompt, row.response) == ([{"role": "user", "content": "Is it?"}], "No")
        assert (row.right_responses, row.wrong_responses) == (("No", "It is not"), ("Yes", "Of course"))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"a": 1, "b": 1},
            {"a": 1, "b": 0},
            r":1:mc1_targets: needs answers labelled 1 \(right\) and answers labelled 0",
        ),
        ({"a": 1, "b": 1, "c": 0}, {"a": 1, "c": 0}, r":1:mc1_targets: needs exactly one right answer"),
        (
            {"a": 1, "c": 0},
            {"b": 1, "c": 0},
            r":1:mc1_targets: needs exactly one right answer, and it must be right in",
        ),
        ({"a": 1, "c": 0}, {"a": 1, "d": 0}, r":1:mc2_targets: the wrong answers differ from those of mc1_targets"),
        ({"a": 1, "c": 2}, {"a": 1, "c": 0}, r":1:mc1_targets: needs answers labelled 1"),
        ({"a": 1, "c": 0}, "a", r":1:mc2_targets: Input should be a valid dictionary"),
        (
            {"choices": ["a", "b"], "labels": [1]},
            {"a": 1},
            r":1:mc1_targets: choices and labels must be lists of equal length",
        ),
        (
            {"choices": None, "labels": [1]},
            {"a": 1},
            r":1:mc1_targets: choices and labels must be lists of equal length",
        ),
        ({"choices": [["a"], "b"], "labels": [1, 0]}, {"a": 1}, r":1:mc1_targets: every choice must be text; fix"),
    ],
)
def test_multiple_choice_faults(tmp_path: Path, first: object, second: object, message: str) -> None:
    jsonl_file(tmp_path, {"question": "q", "mc1_targets": first, "mc2_targets": second})
    with pytest.raises(DataError, match=message):
        read_truthfulqa(tmp_path)


def test_preferences_in_any_format(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """PKU's turns, among others. A preference below 0.5 makes the rejected response the right one."""
    turns = [{"role": "human", "text": "Hi"}]
    sides = {"chosen": {"role": "assistant", "text": "a"}, "rejected": {"role": "assistant", "text": "b"}}
    jsonl_file(tmp_path, {"context": turns, **sides}, {"context": turns, **sides, "preference": 0.25})
    first, second = read_preferences(tmp_path)
    assert first.prompt == [{"role": "user", "content": "Hi"}]
    assert (first.response, first.wrong_responses) == ("a", ("b",))
    assert (second.response, second.wrong_responses) == ("b", ("a",))
    jsonl_file(
        tmp_path,
        *({"prompt": "Hi", "chosen": "a", "rejected": "b"}, {"prompt": "Hi", "chosen": "a"}),
        {"prompt": "Hi", "chosen": "a", "rejected": " "},
    )
    assert [row.source for row in read_preferences(tmp_path)] == [f"{tmp_path.name}/set.jsonl:1"]
    message = caplog.messages[-1]
    assert message.startswith(f"{tmp_path.name}: left out 2 of 3 rows; {tmp_path.name}/set.jsonl:2:rejected: missing; ")
    jsonl_file(tmp_path, {"prompt": "Hi", "chosen": "a", "rejected": " "})
    with pytest.raises(DataError, match=r"/set.jsonl:1: not two responses"):
        read_preferences(tmp_path)
    jsonl_file(tmp_path, {"question": "Hi"})
    with pytest.raises(DataError, match=rf"^{tmp_path.name}/set.jsonl:1: no known format"):
        read_preferences(tmp_path)
    jsonl_file(tmp_path)
    with pytest.raises(
        DataError, match=rf"^{tmp_path.name}/set.jsonl: has no rows; .* from download_evals\.{tmp_path.name}$"
    ):
        read_preferences(tmp_path)
    jsonl_file(tmp_path, {"prompt": "Hi", "completion": "a", "label": True})
    with pytest.raises(DataError, match=r"/set.jsonl:1: not two responses; an eval set of preferences needs pairs"):
        read_preferences(tmp_path)


def test_what_a_set_does_not_read_is_listed_or_refused(tmp_path: Path) -> None:
    rows = [GAP | {"qID": "a", "note": None}, GAP | {"qID": "b", "note": "x"}]
    assert ignored_columns(read_winogrande(jsonl_file(tmp_path, *rows))) == {"qID": 2, "note": 1}
    pairs = [{"prompt": "Hi", "chosen": "a", "rejected": "b", "id": 1}]
    assert ignored_columns(read_preferences(jsonl_file(tmp_path, *pairs))) == {"id": 1}
    with pytest.raises(DataError, match=r"/set.jsonl:1:images: this set does not read it"):
        read_winogrande(jsonl_file(tmp_path, GAP | {"images": ["a.jpg"]}))


def test_preferences_keep_tools_and_reasoning(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    reply = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    rows = [row, row | {"tools": [{"name": "f"}]}, row | {"chosen": [reply]}]
    read = read_preferences(jsonl_file(tmp_path, *rows))
    assert [each.tools for each in read] == [None, [{"name": "f"}], None]
    assert [dict(each.extra) for each in read] == [{}, {}, {"reasoning_content": "hm"}]


def test_preferences_with_tools_calls_and_reasoning(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    call = {"type": "function", "function": {"name": "find", "arguments": '{"q": "x"}'}}
    question = {"role": "user", "content": "Hi"}
    thought = {"role": "assistant", "content": "a", "reasoning_content": "Look."}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    pair = {"chosen": [question, thought], "rejected": [question, called], "tools": tools}
    first, second = read_preferences(
        jsonl_file(tmp_path, pair, pair | {"chosen": [question, called], "rejected": [question, thought]})
    )
    assert (first.response, first.wrong_responses, first.tools) == ("a", ("",), tools)
    model = tokenizer_of(tmp_path / "model", "qwen 3")
    prompt_ids, response_ids, end_scored = encode_row(first, model, 500, 500)
    assert '"name": "find"' in model.decode(prompt_ids)
    assert (model.decode(response_ids), end_scored) == ("<think>\nLook.\n</think>\n\na<|im_end|>", True)
    response = model.decode(encode_row(second, model, 500, 500).response_ids)
    assert response.endswith('{"name": "find", "arguments": {"q": "x"}}\n</tool_call><|im_end|>')


def test_winogrande_row(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    first, second = read_winogrande(jsonl_file(tmp_path, GAP, GAP | {"answer": "2"}))
    assert (first.prompt, first.response, first.wrong_responses) == (
        "Ann helped Ben as",
        " Ann was kind.",
        (" Ben was kind.",),
    )
    assert (second.response, second.wrong_responses) == (" Ben was kind.", (" Ann was kind.",))
    assert first.rest == second.rest == " was kind."
    prompt_ids, response_ids, end_scored = encode_row(first, tokenizer, 100, 100)
    assert tokenizer.decode(prompt_ids + response_ids) == "Ann helped Ben as Ann was kind.</s>"  # without a template
    assert not end_scored


def test_a_sentence_is_in_three_sets(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    rows = read_winogrande(jsonl_file(tmp_path, GAP))
    sets = cross_entropy_sets({"truthfulqa": [], "winogrande": rows})
    assert list(sets) == ["truthfulqa", "winogrande", "winogrande_wrong", "winogrande_sentence"]
    assert sets["winogrande"] == rows
    (wrong,), (sentence,) = sets["winogrande_wrong"], sets["winogrande_sentence"]
    assert (wrong.prompt, wrong.response, wrong.source) == ("Ann helped Ben as", " Ben was kind.", rows[0].source)
    prompt_ids, response_ids, end_scored = encode_row(sentence, tokenizer, 100, 100)
    assert (tokenizer.decode(prompt_ids), end_scored) == ("</s>", False)
    assert tokenizer.decode(response_ids) == "Ann helped Ben as Ann was kind.</s>"


def test_a_gap_at_the_start_follows_an_eos(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    [row] = read_winogrande(jsonl_file(tmp_path, GAP | {"sentence": "_ helped."}))
    prompt_ids, response_ids, _ = encode_row(row, tokenizer, 100, 100)
    assert tokenizer.decode(prompt_ids) == "</s>"
    assert tokenizer.decode(response_ids) == "Ann helped.</s>"


def test_files_of_a_folder_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        (tmp_path / name).write_text(json.dumps(GAP))  # no line break at the end
    assert [Path(row.source).name for row in read_winogrande(tmp_path)] == ["a.jsonl:1", "b.jsonl:1", "c.jsonl:1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\ufeff" + HEADER.removeprefix("Type,Category,") + "q,,r,w,s\n", r"set.csv:1:Best Answer: empty; fill it in"),
        (HEADER + "A,B,q,,r,w,s\n", r"set.csv:1:Best Answer: empty; fill it in"),
        (HEADER + "A,B,q,a,r,w,s\nA,B, ,a,r,w,s\n", r"set.csv:2:Question: empty; fill it in"),
        (HEADER + "A,B,q,a,b\n", r"/set.csv:1: 5 cells under a header of 7; quote"),
        (HEADER + 'A,B,q,"a"x,r,w,s\n', r"set.csv:1: not CSV"),
        (HEADER + 'A,B,q,"a', r"set.csv:1: not CSV"),
        ("Question,Incorrect Answers\nq,w\n", r"set.csv:1:Best Answer: missing; every row needs it"),
        (HEADER, r"/set.csv: has no rows; name another file in download_evals"),
        ("", r"/set.csv: has no rows"),
    ],
)
def test_truthfulqa_faults(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_truthfulqa(csv_file(tmp_path, text))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GAP | {"sentence": "No gap."}, r"set.jsonl:2:sentence: 0 gaps; write exactly one, as _"),
        (GAP | {"sentence": "_ and _."}, r"set.jsonl:2:sentence: 2 gaps"),
        (GAP | {"answer": ""}, r"set.jsonl:2:answer: Input should be '1' or '2'"),
        (GAP | {"answer": 1}, r"set.jsonl:2:answer: Input should be '1' or '2'"),
        (GAP | {"option2": " "}, r"set.jsonl:2:option2: empty; fill it in"),
        (GAP | {"option1": None}, r"set.jsonl:2:option1: Input should be a valid string"),
        ({"sentence": "_"}, r"set.jsonl:2:option1: missing; every row needs it"),
        ([1], r"/set.jsonl:2: a list where an object is needed"),
    ],
)
def test_winogrande_faults(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_winogrande(jsonl_file(tmp_path, GAP, row))


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r": no files; check download_evals\."):
        read_winogrande(tmp_path)
    (tmp_path / "set.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match="has no rows"):
        read_winogrande(tmp_path)
    (tmp_path / "set.jsonl").write_bytes(json.dumps(GAP).encode()[:-5])
    with pytest.raises(DataError, match=r"/set.jsonl:1:[0-9]+: not JSON"):
        read_winogrande(tmp_path)
    (tmp_path / "set.jsonl").write_bytes(b'{"sentence": "\xff"}')
    with pytest.raises(
        DataError, match=r"/set.jsonl:1:sentence: bytes that are not UTF-8, or a lone surrogate, at character 1"
    ):
        read_winogrande(tmp_path)


def test_a_line_separator_inside_a_string_ends_no_row(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text(json.dumps(GAP | {"option1": "A\u2028B"}, ensure_ascii=False), "utf-8")
    assert len(read_winogrande(tmp_path)) == 1


def test_a_row_that_cannot_be_encoded_is_named(tokenizer: ChatTokenizer) -> None:
    class Refusing(ChatTokenizer):
        def __init__(self) -> None: ...

        def raw_prompt(self, *_: object) -> None:  # type: ignore[override]
            raise DataError("no")

    row = EvalRow(source="set.jsonl:7", prompt="a", response="b", right_responses=("b",), wrong_responses=())
    with pytest.raises(DataError, match=r"^set.jsonl:7: no$"):
        encode_row(row, Refusing(), 10, 10)


def test_the_eval_sets_of_the_project(tmp_path: Path) -> None:
    files = {"truthfulqa": "misconceptions.csv", "winogrande": "pronouns.jsonl", "pku": "preferences.jsonl"}
    for name, file in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes((ROOT / "evals" / file).read_bytes())
    sets = read_eval_sets(tmp_path)
    assert list(sets) == ["truthfulqa", "winogrande", "pku"]
    questions, gaps, preferences = sets.values()
    assert (len(questions), len(gaps), len(preferences)) == (44, 40, 24)
    assert len({row.response for row in preferences} | {row.wrong_responses[0] for row in preferences}) == 2 * 24
    assert len({row.prompt[0]["content"] for row in questions if not isinstance(row.prompt, str)}) == 44
    assert all(row.response not in row.wrong_responses and row.wrong_responses for row in questions)
    # Sentences come in pairs with the same prompt and names; the right name of one is the wrong name of the other.
    lines = [json.loads(line) for line in (ROOT / "evals" / "pronouns.jsonl").read_text().splitlines()]
    assert Counter(line["answer"] for line in lines) == {"1": 40 / 2, "2": 40 / 2}
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        assert (first["option1"], first["option2"]) == (second["option1"], second["option2"])
        assert first["answer"] != second["answer"]
        assert first["sentence"].split("_")[0] == second["sentence"].split("_")[0]
        assert all(option in first["sentence"] for option in (first["option1"], first["option2"]))


@pytest.fixture(
    params=[
        "the project's",
        pytest.param("published", marks=pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no published sets here")),
    ]
)
def both_forms(request: pytest.FixtureRequest, tmp_path: Path) -> SimpleNamespace:
    """A folder with TruthfulQA's questions as CSV and as mc_task.json, a folder of sentences, and what both contain."""
    if request.param == "published":
        return SimpleNamespace(
            questions=REAL_DATA / "truthfulqa",
            repeated="TruthfulQA.csv:97",
            n_questions=817,
            n_agreeing=817 - 1,  # one question's answers were corrected later
            answer="The watermelon seeds pass through your digestive system",
            sentences=REAL_DATA / "winogrande",
            n_sentences=1267 + 160,
            prompt="Sarah was a much better surgeon than Maria so",
            response=" Maria always got the easier cases.",
        )
    questions, sentences = tmp_path / "truthfulqa", tmp_path / "winogrande"
    questions.mkdir()
    sentences.mkdir()
    shutil.copy(ROOT / "evals/misconceptions.csv", questions / "TruthfulQA.csv")
    shutil.copy(ROOT / "evals/pronouns.jsonl", sentences)
    rows = read_truthfulqa(questions)
    tasks = []
    for row in rows[5:] + rows[:5]:  # in another order, and with full stops
        assert not isinstance(row.prompt, str)
        right, wrong = ([f"{answer}." for answer in side] for side in (row.right_responses, row.wrong_responses))
        task = {"mc1_targets": {right[0]: 1} | dict.fromkeys(wrong, 0)}
        task["mc2_targets"] = dict.fromkeys(right, 1) | dict.fromkeys(wrong, 0)
        tasks.append({"question": row.prompt[0]["content"], **task})
    (questions / "mc_task.json").write_text(json.dumps(tasks))
    return SimpleNamespace(
        questions=questions,
        repeated="TruthfulQA.csv:6",
        n_questions=44,
        n_agreeing=44,
        answer="The tilt of the Earth's axis gives Europe longer days and a higher Sun in summer",
        sentences=sentences,
        n_sentences=40,
        prompt="Nadia lent her bicycle to Omar because",
        response=" Omar had no other way to get to work.",
    )


@pytest.mark.slow
def test_both_files_of_truthfulqa_agree_and_winogrande_is_read(tmp_path: Path, both_forms: SimpleNamespace) -> None:
    repeated = rf"^truthfulqa/mc_task.json:1: repeats the question of truthfulqa/{both_forms.repeated}"
    with pytest.raises(DataError, match=repeated):
        read_truthfulqa(both_forms.questions)
    rows_by_file = []
    for name in ("TruthfulQA.csv", "mc_task.json"):
        (tmp_path / name).mkdir()
        shutil.copy(both_forms.questions / name, tmp_path / name)
        rows_by_file.append(read_truthfulqa(tmp_path / name))
    questions, choices = rows_by_file
    assert len(questions) == len(choices) == both_forms.n_questions
    assert questions[0].response == both_forms.answer
    answers = {str(row.prompt): {answer.rstrip(".") for answer in row.wrong_responses} for row in choices}
    agreeing = [answers.get(str(row.prompt)) == {a.rstrip(".") for a in row.wrong_responses} for row in questions]
    assert sum(agreeing) == both_forms.n_agreeing
    gaps = read_winogrande(both_forms.sentences)
    assert len(gaps) == both_forms.n_sentences
    assert (gaps[0].prompt, gaps[0].response) == (both_forms.prompt, both_forms.response)
