"""Eval sets: TruthfulQA's CSV and WinoGrande's JSON lines, as prompts with a right response and the wrong ones.

    for row in read_truthfulqa(Path("data/raw/evals/truthfulqa")):
        prompt_ids, response_ids, eos_scored = encode_row(row, tokenizer, max_prompt_tokens=96, max_response_tokens=96)

TruthfulQA (arXiv:2109.07958): a question in the model's template, answered with the best answer and EOS.
WinoGrande (arXiv:1907.10641): a sentence with a gap is no question, so it stands in no template. The prompt is the raw
text before the gap; the response is the right option and the rest of the sentence. Its EOS is not scored: no turn ends.
"""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from prefdag.data.chat import ChatTokenizer, Messages
from prefdag.errors import DataError


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("empty; fill it in or remove the row")
    return text


def _one_gap(text: str) -> str:
    if text.count("_") != 1:
        raise ValueError(f"{text.count('_')} gaps; write exactly one, as _")
    return text


NotBlank = Annotated[str, AfterValidator(_not_blank)]
Fields = TypeVar("Fields", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class EvalRow:
    """One question. `prompt` is a dialogue for the model's template, or a string to be continued as it stands."""

    source: str  # "FILE:ROW", rows from 1
    prompt: Messages | str
    response: str
    wrong_responses: tuple[str, ...]


class EncodedRow(NamedTuple):
    """A row for scoring: log p(response_ids | prompt_ids), without the last token, EOS, where `eos_scored` is False."""

    prompt_ids: list[int]
    response_ids: list[int]
    eos_scored: bool


class _TruthfulQA(BaseModel):
    """The columns of TruthfulQA.csv that are read."""

    model_config = ConfigDict(strict=True)

    question: NotBlank = Field(alias="Question")
    best_answer: NotBlank = Field(alias="Best Answer")
    incorrect_answers: str = Field(alias="Incorrect Answers")  # separated by "; "


class _WinoGrande(BaseModel):
    """The keys of WinoGrande's JSON lines that are read."""

    model_config = ConfigDict(strict=True)

    sentence: Annotated[str, AfterValidator(_one_gap)]
    option1: NotBlank
    option2: NotBlank
    answer: Literal["1", "2"]


def encode_row(
    row: EvalRow,
    tokenizer: ChatTokenizer,
    max_prompt_tokens: int,
    max_response_tokens: int,
    response: str | None = None,
) -> EncodedRow:
    """Token ids of a row with its right response, or with `response`. Raises `DataError`, naming the row."""
    raw = isinstance(row.prompt, str)
    try:
        encode: Callable[..., Any] = tokenizer.raw_prompt if raw else tokenizer.prompt
        prompt = encode(row.prompt, max_prompt_tokens)
        answer = tokenizer.response(row.response if response is None else response, max_response_tokens)
    except DataError as error:
        raise DataError(f"{row.source}: {error}") from None
    return EncodedRow(prompt.ids, answer.ids, eos_scored=not raw and not answer.truncated)


def read_truthfulqa(folder: Path) -> list[EvalRow]:
    """All rows of the CSV files in a folder, files in the order of their names.

    Raises:
        DataError: no CSV file, not UTF-8, no row, a missing column, a row of another width, an empty question or answer.
    """
    rows = []
    for source, record in _csv_records(_files(folder, ".csv")):
        fields = _checked(source, _TruthfulQA.model_validate, record)
        rows.append(
            EvalRow(
                source=source,
                prompt=[{"role": "user", "content": fields.question}],
                response=fields.best_answer,
                wrong_responses=tuple(a for a in map(str.strip, fields.incorrect_answers.split(";")) if a),
            )
        )
    return rows


def read_winogrande(folder: Path) -> list[EvalRow]:
    """All rows of the JSON lines files in a folder, files in the order of their names.

    The space before the gap goes to the response, as byte-pair encodings have it: prompt and response joined are the
    tokens of the whole sentence.

    Raises:
        DataError: no .jsonl file, not UTF-8, no row, not JSON, a missing or empty key, not exactly one "_", or no answer.
    """
    rows = []
    for source, line in _json_lines(_files(folder, ".jsonl")):
        fields = _checked(source, _WinoGrande.model_validate_json, line)
        before, after = fields.sentence.split("_")
        prompt = before.rstrip()
        gap = before[len(prompt) :]
        filled = [gap + option + after for option in (fields.option1, fields.option2)]
        right = filled.pop(int(fields.answer) - 1)
        rows.append(EvalRow(source=source, prompt=prompt, response=right, wrong_responses=tuple(filled)))
    return rows


def _csv_records(files: list[Path]) -> Iterator[tuple[str, dict[str, str]]]:
    """("FILE:ROW", column to cell) for each row under the header."""
    for file in files:
        rows = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
        header = next(rows, [])
        number = 0
        try:
            for number, row in enumerate(rows, 1):
                if not row:  # a blank line
                    continue
                if len(row) != len(header):
                    remedy = "quote cells that hold a comma or a line break"
                    raise DataError(f"{file}:{number}: {len(row)} cells under {len(header)} columns; {remedy}")
                yield f"{file}:{number}", dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise DataError(f"{file}:{number + 1}: not CSV ({error})") from None
        _not_empty(file, number)


def _json_lines(files: list[Path]) -> Iterator[tuple[str, str]]:
    """("FILE:ROW", line) for each line."""
    for file in files:
        # Not splitlines(): a U+2028 inside a string ends no line.
        lines = _text(file).removesuffix("\n").split("\n")
        _not_empty(file, len("".join(lines)))
        for number, line in enumerate(lines, 1):
            yield f"{file}:{number}", line


def _files(folder: Path, suffix: str) -> list[Path]:
    files = sorted(folder.rglob(f"*{suffix}"))
    if not files:
        raise DataError(f"{folder}: no {suffix} file; name one in the source of download_evals")
    return files


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _not_empty(file: Path, size: int) -> None:
    if size == 0:
        raise DataError(f"{file}: no rows; name another file in the source of download_evals")


def _checked(source: str, parse: Callable[[Any], Fields], value: Any) -> Fields:
    """`parse(value)`, its first complaint as a `DataError` at `source`."""
    try:
        return parse(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ":".join([source, *map(str, first["loc"])])
        message = "missing; every row needs it" if first["type"] == "missing" else first["msg"]
        raise DataError(f"{where}: {message.removeprefix('Value error, ')}") from None
