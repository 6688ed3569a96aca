"""Multiple choice, by hand and against a naive twin of lm-evaluation-harness with one row per forward pass."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from benchmarks.lm_eval import hub_form, in_order
from prefdag.lifecycle.errors import DataError
from prefdag.pairs.eval_sets import EvalRow, read_truthfulqa, read_winogrande
from prefdag.text import model as lm
from prefdag.text.evaluation.choices import PRIMER, TASKS, answers
from prefdag.text.scoring.logps import group_logps
from prefdag.tokenizer.files import positions
from prefdag.tokenizer.tokenizer import ChatTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

GAP = {"sentence": "Ann helped Ben as _ was kind.", "option1": "Ann", "option2": "Ben", "answer": "1"}
WINDOW = 512
Z = 1.959964  # the normal distribution's 97.5% quantile


class Subject(NamedTuple):
    """A model folder, loaded by us and by transformers."""

    folder: Path
    tokenizer: ChatTokenizer
    model: Any
    plain_tokenizer: Any
    plain_model: Any


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> Path:
    tokenizer.add_special_tokens(["</s>"])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return folder


def word_pieces() -> Tokenizer:
    """Byte pairs within words, as in GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([PRIMER], trainer)
    return tokenizer


def across_words() -> Tokenizer:
    """Characters, and tokens that reach across the prompt's colon into the answer."""
    characters = [*sorted({*PRIMER, *"Is it?xy"}), " x", ": x"]
    return Tokenizer(
        models.BPE({text: i for i, text in enumerate(characters)}, [(" ", "x"), (":", " x")], unk_token=" ")
    )


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Two layers of width 32 with a tokenizer of word pieces; the weights are large enough that answers differ."""
    folder = write_tokenizer(tmp_path_factory.mktemp("models") / request.param, word_pieces())
    torch.manual_seed(0)
    vocabulary, width = 512, 32
    if request.param == "llama":
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=WINDOW,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    else:
        gpt2 = GPT2Config(
            vocab_size=vocabulary, n_positions=WINDOW, n_embd=width, n_layer=2, n_head=4, initializer_range=0.3
        )
        GPT2LMHeadModel(gpt2).save_pretrained(folder)
    return Subject(
        folder,
        ChatTokenizer(folder, "instruction"),
        lm.load(folder),
        PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="</s>"),
        AutoModelForCausalLM.from_pretrained(folder).eval(),
    )


def question(text: str, right: Sequence[str], wrong: Sequence[str], source: str = "t/a.json:1") -> EvalRow:
    return EvalRow(
        source=source,
        prompt=[{"role": "user", "content": text}],
        response=right[0],
        right_responses=tuple(right),
        wrong_responses=tuple(wrong),
    )


def sentences(folder: Path, *rows: dict[str, str]) -> list[EvalRow]:
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_winogrande(folder)


@torch.no_grad()
def naive(subject: Subject, context: str, continuation: str) -> float:
    """log p(continuation | context) as in the harness: HFLM._encode_pair, then a forward pass of this row alone."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    ids = subject.plain_tokenizer.encode(context + continuation)
    prompt = subject.plain_tokenizer.encode(context)
    rest = ids[len(prompt) :]
    logits = subject.plain_model(torch.tensor([prompt + rest])).logits[0].double()
    return float(logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(rest)[:, None]).sum())


# Texts and tokens


def test_a_question_as_the_harness_writes_it(subject: Subject) -> None:
    row = question("Is it?", ["No", "It is not"], ["Yes", "Of course"])
    assert answers(row) == ("No", "It is not", "Yes", "Of course")
    [group] = TASKS["truthfulqa"].groups([row], subject.tokenizer, WINDOW)
    text = subject.tokenizer.decode(group.prompt)
    assert text == PRIMER + "\n\nQ: Is it?\nA:"
    assert text.startswith("Q: What is human life expectancy in the United States?\nA: Human life")
    assert text.count("Q: ") == text.count("A:") == 7
    responses = [subject.tokenizer.decode(response) for response in group.responses]
    assert responses == [" No", " It is not", " Yes", " Of course"]  # without an EOS


def test_the_best_answer_is_scored_first_wherever_it_is_listed() -> None:
    row = question("q", ["b", "a"], ["c"])
    swapped = EvalRow(
        source="s", prompt=row.prompt, response="b", right_responses=("a", "b"), wrong_responses=row.wrong_responses
    )
    assert answers(swapped) == ("b", "a", "c")


def test_a_sentence_as_the_harness_writes_it(subject: Subject, tmp_path: Path) -> None:
    rows = sentences(tmp_path, GAP, GAP | {"answer": "2", "option1": "Ann "})
    assert [row.rest for row in rows] == [" was kind."] * 2
    groups = TASKS["winogrande"].groups(rows, subject.tokenizer, WINDOW)
    decode = subject.tokenizer.decode
    assert [(decode(group.prompt), [decode(r) for r in group.responses]) for group in groups] == [
        ("Ann helped Ben as Ann", [" was kind."]),
        ("Ann helped Ben as Ben", [" was kind."]),
        ("Ann helped Ben as Ben", [" was kind."]),
        ("Ann helped Ben as Ann", ["  was kind."]),  # the option's trailing space moves to the scored text
    ]


def test_the_sentences_of_the_project_can_be_scored(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "pronouns.jsonl").write_bytes((ROOT / "evals" / "pronouns.jsonl").read_bytes())
    rows = read_winogrande(tmp_path)
    assert len(TASKS["winogrande"].groups(rows, subject.tokenizer, WINDOW)) == 2 * len(rows) == 80


def test_tokens_across_the_boundary_belong_to_the_prompt(tmp_path: Path) -> None:
    """Like the harness: prompt and answer are tokenised as one text and cut after as many tokens as the prompt alone has."""
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, across_words()), "instruction")
    [group] = TASKS["truthfulqa"].groups([question("Is it?", ["xy"], ["y"])], tokenizer, None)
    assert tokenizer.decode(group.prompt[-2:]).replace(" ", "") == "A:"
    assert [tokenizer.decode(response) for response in group.responses] == [
        "y",
        "  y",
    ]  # ": x" is lost, as in the harness
    message = r"^t/a.json:1: the tokenizer merges a whole answer into the text before it"
    with pytest.raises(DataError, match=message):
        TASKS["truthfulqa"].groups([question("Is it?", ["x"], ["y"])], tokenizer, None)


def test_rows_longer_than_the_context_are_refused(subject: Subject, tmp_path: Path) -> None:
    assert positions(subject.folder) == WINDOW
    task, row = TASKS["truthfulqa"], question("Is it?", ["No"], ["Yes", "Of course it is"])
    [group] = task.groups([row], subject.tokenizer, None)
    longest = len(group.prompt) + max(map(len, group.responses))
    assert task.groups([row], subject.tokenizer, longest) == [group]
    with pytest.raises(DataError, match=rf"^t/a.json:1: {longest} tokens, but the model's context is {longest - 1}; "):
        task.groups([row], subject.tokenizer, longest - 1)
    long = question("Is it? " * WINDOW, ["No"], ["Yes"], source="t/a.json:7")
    with pytest.raises(DataError, match=rf"^t/a.json:7: [0-9]+ tokens, but the model's context is {WINDOW}; "):
        task.groups([row, long], subject.tokenizer, WINDOW)
    rows = sentences(tmp_path / "w", GAP, GAP | {"sentence": "_ helped." + " Ann" * WINDOW})
    with pytest.raises(DataError, match=r"^w/a.jsonl:2: [0-9]+ tokens"):
        TASKS["winogrande"].groups(rows, subject.tokenizer, WINDOW)


def test_a_gap_at_the_end_is_refused(subject: Subject, tmp_path: Path) -> None:
    rows = sentences(tmp_path / "w", GAP | {"sentence": "It was _ "})
    with pytest.raises(DataError, match=r"^w/a.jsonl:1: no text follows the gap"):
        TASKS["winogrande"].groups(rows, subject.tokenizer, WINDOW)


# Scores

TEXT = st.text("abcdexyzAQ .,:?'\"\n\té漢", min_size=1, max_size=12)
WORDS = TEXT.filter(str.strip)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(WORDS, st.lists(WORDS, min_size=2, max_size=5, unique=True), st.data())
def test_sharing_a_prompt_changes_no_score(
    subject: Subject, text: str, choices: list[str], data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, len(choices) - 1))
    rows = [question(text, choices[:n], choices[n:]), question("Is it?", ["No"], ["Yes"])]
    groups = TASKS["truthfulqa"].groups(rows, subject.tokenizer, WINDOW)
    logps = group_logps(subject.model, groups, 10_000, "test")
    expected = [
        naive(subject, f"{PRIMER}\n\nQ: {asked}\nA:", f" {answer}")
        for asked, row in zip((text, "Is it?"), rows, strict=True)
        for answer in answers(row)
    ]
    np.testing.assert_allclose(logps, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(TEXT, WORDS, WORDS, WORDS, st.sampled_from("12"))
def test_sentences_score_like_the_naive_twin(
    subject: Subject,
    tmp_path_factory: pytest.TempPathFactory,
    before: str,
    option1: str,
    option2: str,
    after: str,
    answer: str,
) -> None:
    row = {"sentence": f"{before}_{after}", "option1": option1, "option2": option2, "answer": answer}
    rows = sentences(tmp_path_factory.getbasetemp() / "w", row)
    task = TASKS["winogrande"]
    logps = group_logps(subject.model, task.groups(rows, subject.tokenizer, WINDOW), 10_000, "test")
    expected = [naive(subject, before + option, " " + after.strip()) for option in (option1, option2)]
    np.testing.assert_allclose(logps, expected if answer == "1" else expected[::-1], rtol=1e-5, atol=1e-4)


def test_a_model_for_which_all_tokens_are_equally_probable(tmp_path: Path, subject: Subject) -> None:
    """An answer of n tokens has probability V^-n. Answers of equal length tie, and a tie counts as wrong."""
    row = question("Is it?", ["No", "No one"], ["No way at all"])
    tied = question("Is it?", ["No"], ["Na"])
    model = lm.load(subject.folder)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.zeros_like(head.weight), requires_grad=False)
    groups = TASKS["truthfulqa"].groups([row, tied], subject.tokenizer, WINDOW)
    lengths = [[len(response) for response in group.responses] for group in groups]
    table = TASKS["truthfulqa"].table([row, tied], group_logps(model, groups, 10_000, "test"))
    v = len(head.weight)
    assert table["logps_right"][0] == pytest.approx([-n * math.log(v) for n in lengths[0][:2]], rel=1e-6)
    right, wrong = v ** -lengths[0][0] + v ** -lengths[0][1], v ** -lengths[0][2]
    assert table["mc2"][0] == pytest.approx(right / (right + wrong), rel=1e-4)
    assert lengths[1][0] == lengths[1][1]
    assert table["mc1"].tolist() == [True, False]
    assert table["mc2"][1] == 0.5


# Tables and metrics, by hand


def test_truthfulqa_by_hand() -> None:
    rows = [
        question("a", ["best", "right"], ["wrong", "other"], source="t:1"),  # another right answer may be more probable
        question("b", ["best"], ["wrong"], source="t:2"),
        question("c", ["best"], ["wrong"], source="t:3"),  # a tie
        # Probabilities below the range of float64; only the other right answer is more probable than the wrong one.
        question("d", ["best", "right"], ["wrong"], source="t:4"),
    ]
    logps = np.array([*np.log([0.2, 0.4, 0.1, 0.1]), *np.log([0.1, 0.3]), -2.0, -2.0, -1000.0, -998.0, -999.0])
    task = TASKS["truthfulqa"]
    table = task.table(rows, logps)
    assert table["source"].tolist() == ["t:1", "t:2", "t:3", "t:4"]
    assert table["mc1"].tolist() == [True, False, False, False]
    last = (1 + math.e**2) / (1 + math.e**2 + math.e)
    mc2 = [(0.2 + 0.4) / (0.2 + 0.4 + 0.1 + 0.1), 0.1 / (0.1 + 0.3), 1 / (1 + 1), last]
    assert table["mc2"].tolist() == pytest.approx(mc2)
    assert [len(logps) for logps in table["logps_right"]] == [2, 1, 1, 2]
    assert table["logps_wrong"][3] == [-999.0]
    metrics = task.metrics(table)
    assert list(metrics) == ["mc1", "mc1_low", "mc1_high", "mc2", "mc2_low", "mc2_high", "n"]
    assert (metrics["mc1"], metrics["n"]) == (1 / 4, 4)
    # Wilson's interval of p = 1/4 for n = 4: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
    center, half = 1 / 4 + Z**2 / 8, Z * math.sqrt(3 / 64 + Z**2 / 64)
    ends = (center - half) / (1 + Z**2 / 4), (center + half) / (1 + Z**2 / 4)
    assert (metrics["mc1_low"], metrics["mc1_high"]) == pytest.approx(ends, abs=1e-6)
    error = 3.1824 * float(np.std(mc2, ddof=1)) / math.sqrt(4)  # Student's t with 3 degrees of freedom
    assert metrics["mc2"] == pytest.approx(sum(mc2) / 4)
    assert metrics["mc2_high"] - metrics["mc2"] == pytest.approx(error, rel=1e-4)
    assert metrics["mc2"] - metrics["mc2_low"] == pytest.approx(error, rel=1e-4)


def test_winogrande_by_hand(tmp_path: Path) -> None:
    rows = sentences(tmp_path / "w", GAP, GAP | {"answer": "2"}, GAP)
    task = TASKS["winogrande"]
    table = task.table(rows, np.array([-1.0, -2.0, -3.0, -2.5, -4.0, -4.0]))
    assert table["correct"].tolist() == [True, False, False]  # the last is a tie
    assert (table["logp_right"].tolist(), table["logp_wrong"].tolist()) == ([-1, -3, -4], [-2, -2.5, -4])
    metrics = task.metrics(table)
    assert list(metrics) == ["accuracy", "accuracy_low", "accuracy_high", "n"]
    assert (metrics["accuracy"], metrics["n"]) == (pytest.approx(1 / 3), 3)
    # Wilson's interval of p = 1/3 for n = 3.
    center, half = 1 / 3 + Z**2 / 6, Z * math.sqrt(2 / 27 + Z**2 / 36)
    ends = (center - half) / (1 + Z**2 / 3), (center + half) / (1 + Z**2 / 3)
    assert (metrics["accuracy_low"], metrics["accuracy_high"]) == pytest.approx(ends, abs=1e-6)


def test_tables_can_be_saved_as_parquet(tmp_path: Path) -> None:
    import pandas as pd

    table = TASKS["truthfulqa"].table([question("a", ["b"], ["c", "d"])], np.array([-1.0, -2.0, -3.0]))
    table.to_parquet(tmp_path / "a.parquet")
    [row] = pd.read_parquet(tmp_path / "a.parquet").to_dict("records")
    assert (row["logps_right"].tolist(), row["logps_wrong"].tolist(), row["mc1"]) == ([-1.0], [-2.0, -3.0], True)


def test_the_benchmark_puts_our_scores_in_the_harness_order(tmp_path: Path) -> None:
    """The harness keeps the order of the file; ours puts the right answers first."""
    raw = {
        "question": "q",
        "mc1_targets": {"w": 0, "best": 1, "v": 0},
        "mc2_targets": {"w": 0, "right": 1, "v": 0, "best": 1},
    }
    record = hub_form(raw)
    assert record["mc2_targets"] == {"choices": ["w", "right", "v", "best"], "labels": [0, 1, 0, 1]}
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.jsonl").write_text(json.dumps(record))
    rows = read_truthfulqa(tmp_path / "t")
    assert answers(rows[0]) == ("best", "right", "w", "v")
    table = TASKS["truthfulqa"].table(rows, np.array([-1.0, -2.0, -3.0, -4.0]))
    assert in_order("truthfulqa_mc1", [record], rows, table).tolist() == [-3, -1, -4]
    assert in_order("truthfulqa_mc2", [record], rows, table).tolist() == [-3, -2, -4, -1]
    gaps = [GAP, GAP | {"answer": "2"}]
    rows = sentences(tmp_path / "w", *gaps)
    table = TASKS["winogrande"].table(rows, np.array([-1.0, -2.0, -3.0, -4.0]))
    assert in_order("winogrande", gaps, rows, table).tolist() == [-1, -2, -4, -3]
