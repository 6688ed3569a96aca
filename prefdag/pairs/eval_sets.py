"""Eval sets: rows with a prompt, its right responses, and wrong ones to compare them with.

    for name, rows in read_eval_sets(Path("data/raw/evals")).items(): ...

truthfulqa  TruthfulQA (arXiv:2109.07958): questions. Its CSV, its mc_task.json, or the hub's parquet of either form.
            MC1 is the best answer against the wrong ones, MC2 all right answers against the wrong ones.
winogrande  WinoGrande (arXiv:1907.10641): a sentence with a gap is no question, so it stands in no template. The prompt is
            the raw text before the gap; a response is an option and the rest of the sentence.
pku         Preference pairs in any format that training pairs may have, PKU's processed-hh-rlhf say: chosen is right.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from prefdag.pairs.formats import Message, needs_object, needs_text
from prefdag.pairs.records import Fault, file_name, read_records
from prefdag.pairs.schema import read_pairs
from prefdag.runtime.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvalRow:
    """One question. `prompt` is a dialogue for the model's template, or a string to be continued as it stands."""

    source: str  # "SET/FILE:ROW", rows from 1
    prompt: list[Message] | str
    response: str  # the best one
    right_responses: tuple[str, ...]  # `response` among them
    wrong_responses: tuple[str, ...]
    rest: str = ""  # what follows a gap: the end of every response, behind the option


def _utf8(text: str) -> str:
    try:
        return needs_text(text, None)
    except Fault as fault:
        raise ValueError(fault.reason) from None


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("empty; fill it in or remove the row")
    return text


def _one_gap(text: str) -> str:
    if text.count("_") != 1:
        raise ValueError(f"{text.count('_')} gaps; write exactly one, as _")
    return text


def _answers(value: Any) -> Any:
    """The CSV has them in one cell, "; " between them."""
    return [answer for answer in map(str.strip, value.split(";")) if answer] if isinstance(value, str) else value


def _targets(value: Any) -> Any:
    """The hub has two lists, `choices` and `labels`, in place of a mapping."""
    if isinstance(value, dict) and value.keys() == {"choices", "labels"}:
        choices, labels = value["choices"], value["labels"]
        if not (isinstance(choices, list) and isinstance(labels, list) and len(choices) == len(labels)):
            raise ValueError("not a list of choices and one of as many labels; mend the row")
        if not all(isinstance(choice, str) for choice in choices):
            raise ValueError("a choice that is no text; mend the row")
        return dict(zip(choices, labels, strict=True))
    return value


def _both_kinds(targets: dict[str, int]) -> dict[str, int]:
    if set(targets.values()) != {0, 1}:
        raise ValueError("answers of 1 (right) and of 0 (wrong) are needed; mend the row")
    return targets


Text = Annotated[str, AfterValidator(_utf8)]
NotBlank = Annotated[Text, AfterValidator(_not_blank)]
Answers = Annotated[list[NotBlank], BeforeValidator(_answers)]
Targets = Annotated[dict[NotBlank, int], BeforeValidator(_targets), AfterValidator(_both_kinds)]
Fields = TypeVar("Fields", bound=BaseModel)


class _Generation(BaseModel):
    """TruthfulQA.csv, or the hub's names for its columns: those that are read."""

    model_config = ConfigDict(strict=True)

    question: NotBlank = Field(validation_alias=AliasChoices("Question", "question"))
    best: NotBlank = Field(validation_alias=AliasChoices("Best Answer", "best_answer"))
    right: Answers = Field([], validation_alias=AliasChoices("Correct Answers", "correct_answers"))
    wrong: Answers = Field(validation_alias=AliasChoices("Incorrect Answers", "incorrect_answers"))


class _MultipleChoice(BaseModel):
    """TruthfulQA's mc_task.json: every answer with 1 where it is right, else 0."""

    model_config = ConfigDict(strict=True)

    question: NotBlank
    mc1_targets: Targets
    mc2_targets: Targets


class _WinoGrande(BaseModel):
    """The keys of WinoGrande's JSON lines that are read."""

    model_config = ConfigDict(strict=True)

    sentence: Annotated[Text, AfterValidator(_one_gap)]
    option1: NotBlank
    option2: NotBlank
    answer: Literal["1", "2"]


def read_eval_sets(folder: Path, most: int | None = None) -> dict[str, list[EvalRow]]:
    """The rows of every set below `folder`, the first `most` of each, in the order of `READERS`.

    A set that was not downloaded is left out.
    """
    return {name: read(folder / name)[:most] for name, read in READERS.items() if (folder / name).is_dir()}


def spoken(sets: Mapping[str, Sequence[EvalRow]]) -> dict[str, Sequence[EvalRow]]:
    """The rows whose `response` is scored by cross-entropy: those of the sets, and WinoGrande's in two more ways.

    winogrande_wrong has the wrong filling, which a model should find less likely, not more; winogrande_sentence the whole
    sentence, rightly filled, with nothing before it.
    """
    found: dict[str, Sequence[EvalRow]] = {}
    for name, rows in sets.items():
        found[name] = rows
        if name == "winogrande":
            found["winogrande_wrong"] = [replace(row, response=row.wrong_responses[0]) for row in rows]
            found["winogrande_sentence"] = [
                replace(row, prompt="", response=f"{row.prompt}{row.response}") for row in rows
            ]
    return found


def read_truthfulqa(folder: Path) -> list[EvalRow]:
    """All questions of all files, in the order of file names.

    Raises:
        DataError: no file, no row, a row that is none of TruthfulQA's, an empty question or answer, a question twice.
    """
    rows: dict[str, EvalRow] = {}
    for source, record in _records(folder):
        if "mc1_targets" in record:
            row = _choices(source, _checked(source, _MultipleChoice, record))
        else:
            fields = _checked(source, _Generation, record)
            right = tuple(dict.fromkeys([fields.best, *fields.right]))
            row = _question(source, fields.question, right, tuple(fields.wrong))
        question = str(row.prompt)
        if question in rows:
            raise DataError(f"{source}: the question of {rows[question].source} again; keep one of them")
        rows[question] = row
    return list(rows.values())


def read_winogrande(folder: Path) -> list[EvalRow]:
    """All sentences of all files, in the order of file names.

    The space before the gap goes to the response, as byte-pair encodings have it: prompt and response joined are the
    tokens of the whole sentence.

    Raises:
        DataError: no file, no row, a missing or empty key, not exactly one "_", or no answer.
    """
    rows = []
    for source, record in _records(folder):
        fields = _checked(source, _WinoGrande, record)
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
            )
        )
    return rows


def read_preferences(folder: Path) -> list[EvalRow]:
    """All pairs of all files, in the order of file names.

    Rows that cannot be read or are no pair, of which published sets have a few, are left out, as `validate_pairs` leaves them
    out of training; how many is logged.

    Raises:
        DataError: a file that cannot be read, or no pair is left.
    """
    pairs = read_pairs(folder, "auto", f"download_evals.{folder.name}", f"{folder.name}/")
    rows: list[EvalRow] = []
    left_out: list[DataError] = []
    for pair in pairs.to_dict("records"):
        source = pair["source"]
        sides = pair["chosen"], pair["rejected"]
        if isinstance(pair["fault"], str):
            column = pair["fault_column"] if isinstance(pair["fault_column"], str) else None
            left_out.append(_at(source, column, pair["fault"]))
            continue
        if not all(isinstance(side, str) and side.strip() for side in sides):
            left_out.append(DataError(f"{source}: not two responses; an eval set of preferences needs pairs"))
            continue
        chosen, rejected = sides if pair["preference"] >= 0.5 else sides[::-1]
        rows.append(
            EvalRow(
                source=source,
                prompt=pair["prompt"],
                response=chosen,
                right_responses=(chosen,),
                wrong_responses=(rejected,),
            )
        )
    if left_out and not rows:
        raise left_out[0]
    if left_out:
        logger.warning("%s: left out %d of %d rows; %s", folder.name, len(left_out), len(pairs), left_out[0])
    return rows


READERS: dict[str, Callable[[Path], list[EvalRow]]] = {
    "truthfulqa": read_truthfulqa,
    "winogrande": read_winogrande,
    "pku": read_preferences,
}


def _choices(source: str, fields: _MultipleChoice) -> EvalRow:
    right, wrong = (
        [
            [answer for answer, label in targets.items() if label == kind]
            for targets in (fields.mc1_targets, fields.mc2_targets)
        ]
        for kind in (1, 0)
    )
    if len(right[0]) != 1 or right[0][0] not in right[1]:
        raise DataError(
            f"{source}:mc1_targets: needs one right answer, which is right in mc2_targets too; mend the row"
        )
    if set(wrong[0]) != set(wrong[1]):
        raise DataError(f"{source}:mc2_targets: other wrong answers than mc1_targets; mend the row")
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
    """("SET/FILE:ROW", the object that stands there) for each row of each file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(f"{folder}: no files; look at download_evals.{folder.name} in params.yaml")
    for path in files:
        name = f"{folder.name}/{file_name(path, folder)}"
        number = 0
        for number, record in read_records(path, name):
            try:
                if isinstance(record, Fault):
                    raise record
                yield f"{name}:{number}", needs_object(record, None)
            except Fault as fault:
                raise _at(f"{name}:{number}", fault.column, fault.reason) from None
        if number == 0:
            raise DataError(f"{name}: holds no rows; name another file in download_evals.{folder.name}")


def _at(source: str, column: str | None, reason: str) -> DataError:
    return DataError(f"{':'.join([source, *([column] if column else [])])}: {reason}")


def _checked(source: str, kind: type[Fields], record: Any) -> Fields:
    """A record as `kind`, its first complaint as a `DataError` at `source`."""
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ":".join([source, *map(str, first["loc"])])
        message = "missing; every row needs it" if first["type"] == "missing" else first["msg"]
        raise DataError(f"{where}: {message.removeprefix('Value error, ')}") from None
