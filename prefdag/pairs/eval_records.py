"""Records of the published eval sets: the keys that are read, and what their values must be."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from prefdag.formats.faults import Fault
from prefdag.formats.fields import meaningful
from prefdag.formats.values import holds, needs_text
from prefdag.lifecycle.errors import DataError


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


def _split_answers(value: Any) -> Any:
    """The CSV has all answers in one cell, separated by "; "."""
    return [answer for answer in map(str.strip, value.split(";")) if answer] if isinstance(value, str) else value


def _targets_of_lists(value: Any) -> Any:
    """The hub has two lists, `choices` and `labels`, instead of a mapping."""
    if isinstance(value, dict) and value.keys() == {"choices", "labels"}:
        choices, labels = value["choices"], value["labels"]
        if not (isinstance(choices, list) and isinstance(labels, list) and len(choices) == len(labels)):
            raise ValueError("choices and labels must be lists of equal length; fix the row")
        if not all(isinstance(choice, str) for choice in choices):
            raise ValueError("every choice must be text; fix the row")
        return dict(zip(choices, labels, strict=True))
    return value


def _right_and_wrong(targets: dict[str, int]) -> dict[str, int]:
    if set(targets.values()) != {0, 1}:
        raise ValueError("needs answers labelled 1 (right) and answers labelled 0 (wrong); fix the row")
    return targets


Text = Annotated[str, AfterValidator(_utf8)]
NotBlank = Annotated[Text, AfterValidator(_not_blank)]
AnswerTexts = Annotated[list[NotBlank], BeforeValidator(_split_answers)]
Targets = Annotated[dict[NotBlank, int], BeforeValidator(_targets_of_lists), AfterValidator(_right_and_wrong)]


class TruthfulQARecord(BaseModel):
    """A row of TruthfulQA.csv, or of the hub's version, which has other names for the columns."""

    model_config = ConfigDict(strict=True)

    question: NotBlank = Field(validation_alias=AliasChoices("Question", "question"))
    best: NotBlank = Field(validation_alias=AliasChoices("Best Answer", "best_answer"))
    right: AnswerTexts = Field([], validation_alias=AliasChoices("Correct Answers", "correct_answers"))
    wrong: AnswerTexts = Field(validation_alias=AliasChoices("Incorrect Answers", "incorrect_answers"))


class MultipleChoiceRecord(BaseModel):
    """A row of TruthfulQA's mc_task.json: every answer with 1 if it is right, else 0."""

    model_config = ConfigDict(strict=True)

    question: NotBlank
    mc1_targets: Targets
    mc2_targets: Targets


class WinoGrandeRecord(BaseModel):
    """A row of WinoGrande's JSON lines."""

    model_config = ConfigDict(strict=True)

    sentence: Annotated[Text, AfterValidator(_one_gap)]
    option1: NotBlank
    option2: NotBlank
    answer: Literal["1", "2"]


Parsed = TypeVar("Parsed", bound=BaseModel)


def unread(source: str, model: type[BaseModel], record: dict[str, Any]) -> tuple[str, ...]:
    """The keys of a record that a model does not read. Raises `DataError` for content that changes what the row means."""
    aliases = [field.validation_alias for field in model.model_fields.values()]
    known = {choice for alias in aliases if isinstance(alias, AliasChoices) for choice in alias.choices}
    names = [key for key in record if key not in known | model.model_fields.keys() and holds(record[key])]
    for name in filter(meaningful, names):
        raise DataError(f"{source}:{name}: this set does not read it, and scores without it would be wrong; remove it")
    return tuple(names)


def parse(source: str, model: type[Parsed], record: Any) -> Parsed:
    """`record` as a `model`. Raises `DataError` with `source`, the first key at fault, and the reason."""
    try:
        return model.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ":".join([source, *map(str, first["loc"])])
        message = "missing; every row needs it" if first["type"] == "missing" else first["msg"]
        raise DataError(f"{where}: {message.removeprefix('Value error, ')}") from None
