"""Eval sets: rows with a prompt, its right responses, and its wrong responses.

    for name, rows in read_eval_sets(Path("data/raw/evals")).items(): ...

truthfulqa  TruthfulQA (arXiv:2109.07958), questions: its CSV, its mc_task.json, or the hub's parquet of either. MC1 compares
            the best answer with the wrong ones, MC2 all right answers with the wrong ones.
winogrande  WinoGrande (arXiv:1907.10641), sentences with a gap. They are not questions, so no template is used: the prompt is
            the raw text before the gap, and a response is an option with the rest of the sentence.
pku         Preference pairs in any format of training pairs, such as PKU's processed-hh-rlhf. Chosen is the right response.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from prefdag.formats.faults import Fault
from prefdag.formats.files import data_files
from prefdag.formats.records import read_records
from prefdag.formats.values import needs_object
from prefdag.lifecycle.errors import DataError
from prefdag.pairs import turns
from prefdag.pairs.eval_records import MultipleChoiceRecord, TruthfulQARecord, WinoGrandeRecord, parse, unread
from prefdag.pairs.schema import read_pairs
from prefdag.recorded import recorded

if TYPE_CHECKING:
    from prefdag.pairs.turns import Messages
    from prefdag.tokenizer.template import Tools

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvalRow:
    """One question. `prompt` is a dialogue for the model's template, or raw text to be continued."""

    source: str  # "SET/FILE:ROW", rows from 1
    prompt: "Messages | str"
    response: str  # the best response
    right_responses: tuple[str, ...]  # includes `response`
    wrong_responses: tuple[str, ...]
    rest: str = ""  # the text after a gap, with which every response ends
    extra: Mapping[str, Any] = field(default_factory=dict)  # reasoning and calls of `response`
    tools: "Tools" = None  # those that the dialogue offers
    ignored: tuple[str, ...] = ()  # the names of what was not read


def read_eval_sets(folder: Path, max_rows: int | None = None) -> dict[str, list[EvalRow]]:
    """The rows of every set in `folder`, at most the first `max_rows` of each, in the order of `READERS`.

    Sets that were not downloaded are left out.
    """
    return {
        name: read(folder / name)[:max_rows] for name, read in READERS.items() if (recorded(folder) / name).is_dir()
    }


def ignored_columns(rows: Sequence[EvalRow]) -> dict[str, int]:
    """The number of rows per name of a column that was not read, the most frequent first."""
    return dict(Counter(chain.from_iterable(row.ignored for row in rows)).most_common())


def cross_entropy_sets(sets: Mapping[str, Sequence[EvalRow]]) -> dict[str, Sequence[EvalRow]]:
    """The rows whose `response` is scored by cross-entropy: those of `sets`, and two variants of WinoGrande.

    winogrande_wrong fills the gap with the wrong option, which a model should find less likely. winogrande_sentence is the
    whole sentence with the right option, without a prompt.
    """
    scored: dict[str, Sequence[EvalRow]] = {}
    for name, rows in sets.items():
        scored[name] = rows
        if name == "winogrande":
            scored["winogrande_wrong"] = [replace(row, response=row.wrong_responses[0]) for row in rows]
            scored["winogrande_sentence"] = [
                replace(row, prompt="", response=f"{row.prompt}{row.response}") for row in rows
            ]
    return scored


def read_truthfulqa(folder: Path) -> list[EvalRow]:
    """All questions of all files, in the order of file names.

    Raises:
        DataError: there is no file or no row, a row is not TruthfulQA's, a question or an answer is empty, or a question
            is repeated.
    """
    rows: dict[str, EvalRow] = {}
    for source, record in _records(folder):
        if "mc1_targets" in record:
            row = _multiple_choice(source, parse(source, MultipleChoiceRecord, record))
        else:
            fields = parse(source, TruthfulQARecord, record)
            right = tuple(dict.fromkeys([fields.best, *fields.right]))
            row = _question(source, fields.question, right, tuple(fields.wrong))
        row = replace(row, ignored=unread(source, MODELS["mc1_targets" in record], record))
        question = str(row.prompt)
        if question in rows:
            raise DataError(f"{source}: repeats the question of {rows[question].source}; keep one of them")
        rows[question] = row
    return list(rows.values())


def read_winogrande(folder: Path) -> list[EvalRow]:
    """All sentences of all files, in the order of file names.

    The space before the gap is part of the response, because byte-pair encodings put a space at the start of a token. So the
    tokens of prompt and response together are those of the whole sentence.

    Raises:
        DataError: there is no file or no row, a key is missing or empty, there is not exactly one "_", or no answer.
    """
    rows = []
    for source, record in _records(folder):
        fields = parse(source, WinoGrandeRecord, record)
        before, after = fields.sentence.split("_")
        prompt = before.rstrip()
        gap = before[len(prompt) :]
        filled = [gap + option + after for option in (fields.option1, fields.option2)]
        right = filled.pop(int(fields.answer) - 1)
        rows.append(
            EvalRow(
                source=source,
                prompt=prompt,
                response=right,
                right_responses=(right,),
                wrong_responses=tuple(filled),
                rest=after,
                ignored=unread(source, WinoGrandeRecord, record),
            )
        )
    return rows


def read_preferences(folder: Path) -> list[EvalRow]:
    """All pairs of all files, in the order of file names.

    Published sets have a few rows that cannot be read or are not pairs. They are left out, as `validate_pairs` leaves them
    out of training, and their number is logged.

    Raises:
        DataError: a file cannot be read, or no pair is left.
    """
    pairs = read_pairs(folder, "auto", f"download_evals.{folder.name}", f"{folder.name}/")
    rows: list[EvalRow] = []
    left_out: list[DataError] = []
    for pair in pairs.to_dict("records"):
        source = pair["source"]
        sides = [turns.response(pair, side) for side in turns.SIDES]
        if isinstance(pair["fault"], str):
            column = pair["fault_column"] if isinstance(pair["fault_column"], str) else None
            left_out.append(_at(source, column, pair["fault"]))
            continue
        chosen, rejected = sides if pair["preference"] >= 0.5 else sides[::-1]
        if chosen is None or rejected is None or not all(turns.shown(side).strip() for side in (chosen, rejected)):
            left_out.append(DataError(f"{source}: not two responses; an eval set of preferences needs pairs"))
            continue
        rows.append(
            EvalRow(
                source=source,
                prompt=turns.messages(pair["prompt"]),
                response=chosen["content"],
                right_responses=(chosen["content"],),
                wrong_responses=(rejected["content"],),
                extra={key: value for key, value in chosen.items() if key not in ("role", "content")},
                tools=turns.tools(pair),
                ignored=pair["ignored"],
            )
        )
    if left_out and not rows:
        raise left_out[0]
    if left_out:
        logger.warning("%s: left out %d of %d rows; %s", folder.name, len(left_out), len(pairs), left_out[0])
    return rows


# Of TruthfulQA, by whether a row has mc1_targets.
MODELS: Mapping[bool, type[BaseModel]] = {True: MultipleChoiceRecord, False: TruthfulQARecord}
READERS: dict[str, Callable[[Path], list[EvalRow]]] = {
    "truthfulqa": read_truthfulqa,
    "winogrande": read_winogrande,
    "pku": read_preferences,
}


def _multiple_choice(source: str, fields: MultipleChoiceRecord) -> EvalRow:
    right, wrong = (
        [
            [answer for answer, label in targets.items() if label == kind]
            for targets in (fields.mc1_targets, fields.mc2_targets)
        ]
        for kind in (1, 0)
    )
    if len(right[0]) != 1 or right[0][0] not in right[1]:
        raise DataError(
            f"{source}:mc1_targets: needs exactly one right answer, and it must be right in mc2_targets too; fix the row"
        )
    if set(wrong[0]) != set(wrong[1]):
        raise DataError(f"{source}:mc2_targets: the wrong answers differ from those of mc1_targets; fix the row")
    return _question(source, fields.question, (*right[0], *(a for a in right[1] if a != right[0][0])), tuple(wrong[0]))


def _question(source: str, question: str, right: Sequence[str], wrong: Sequence[str]) -> EvalRow:
    return EvalRow(
        source=source,
        prompt=[{"role": "user", "content": question}],
        response=right[0],
        right_responses=tuple(right),
        wrong_responses=tuple(wrong),
    )


def _records(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The source ("SET/FILE:ROW") and the object of each row of each file."""
    for path, plain_name in data_files(folder, f"download_evals.{folder.name}"):
        name = f"{folder.name}/{plain_name}"
        number: int | str = 0
        for number, record in read_records(path, name):
            try:
                if isinstance(record, Fault):
                    raise record
                yield f"{name}:{number}", needs_object(record, None)
            except Fault as fault:
                raise _at(f"{name}:{number}", fault.column, fault.reason) from None
        if number == 0:
            raise DataError(f"{name}: has no rows; name another file in download_evals.{folder.name}")


def _at(source: str, column: str | None, reason: str) -> DataError:
    return DataError(f"{':'.join([source, *([column] if column else [])])}: {reason}")
