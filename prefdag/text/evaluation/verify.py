"""A judge that is a program: checks that give an answer a score and say why.

A score is 1 if the answer passes and 0 if it does not; a function of the user's own may return any finite number. NaN means
that the prompt has nothing to compare with, whatever the answer.
"""

import copy
import json
import math
import re
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from prefdag.config.verify import FunctionCheck, InstructionsCheck, JsonCheck, LengthCheck, NumberCheck, RegexCheck
from prefdag.lifecycle.errors import ParamsError
from prefdag.own_losses.names import OWN_CHECKS
from prefdag.text.evaluation import instructions

if TYPE_CHECKING:
    from types import FrameType

    from prefdag.config.verify import Check, VerifyJudge
    from prefdag.pairs.turns import Messages

# As in English text: 1,234.5, -3, .5, 6e-3. Not the digits of a word, as in H2O; a hyphen between numbers is no sign.
NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-−])?(?<!\w)(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3}(?!\d))?"
)
SHORT = 80  # most characters of an answer or a value in a reason

Function = Callable[["Messages", str, str | None], float]


class Question(NamedTuple):
    """What an answer replies to. `chosen` is the chosen response of its pair, None if there is none."""

    id: str
    messages: "Messages"
    chosen: str | None


class Score(NamedTuple):
    value: float
    reason: str


Scorer = Callable[[Question, str], Score]


def scorer(judge: "VerifyJudge", own: Mapping[str, Function], where: str) -> Callable[[Question, str], list[Score]]:
    """A function that gives an answer the score of each check, in order. It must be called in the main thread.

    Args:
        own: the user's functions, `CHECKS` of stages/verify.py.
        where: the key of the checks, for messages, as "params.yaml: judge_text.judge.checks".

    It raises `ParamsError`: a check takes too long, or cannot be computed.
    """
    compiled = [_compiled(check, own, f"{where}.{i}") for i, check in enumerate(judge.checks)]

    def scores(question: Question, answer: str) -> list[Score]:
        found: list[Score] = []
        try:
            with _time_limit(judge.timeout):
                for each in compiled:
                    found.append(each(question, answer))
        except _OutOfTimeError:
            raise ParamsError(
                f"{where}.{len(found)}: took more than {judge.timeout:g} s on an answer to {question.id}; make it faster, "
                "or raise timeout"
            ) from None
        return found

    return scores


@contextmanager
def checking_own_file() -> Iterator[None]:
    """Raises `ParamsError` in place of whatever an import of stages/verify.py in the block raises."""
    try:
        yield
    except Exception as error:  # the user's code may raise anything
        raise ParamsError(f"{OWN_CHECKS}: {type(error).__name__}: {_line(error)}; fix the file") from None


def mean(scores: Sequence[Score]) -> float:
    return sum(score.value for score in scores) / len(scores)


def rewards(judge: "VerifyJudge", one: Sequence[Score], other: Sequence[Score]) -> tuple[float, float, str]:
    """The rewards of two answers to a prompt, of which the higher one is better, and the name of the check that decided.

    The name is empty if several checks decided together, or none did.
    """
    names = [check.name or check.kind for check in judge.checks]
    return decide(names, judge.combine, [score.value for score in one], [score.value for score in other])


def decide(
    names: Sequence[str], combine: str, one: Sequence[float], other: Sequence[float]
) -> tuple[float, float, str]:
    """As `rewards`, of what each of some checks or principles gives two answers."""
    if combine == "mean" and len(names) > 1:
        return sum(one) / len(one), sum(other) / len(other), ""
    for name, a, b in zip(names, one, other, strict=True):
        if a != b:  # also NaN: what an important principle leaves open, a lesser one does not decide
            return a, b, "" if math.isnan(a) else name
    return one[-1], other[-1], ""


def reason(judge: "VerifyJudge", scores: Sequence[Score]) -> str:
    """The scores of an answer in words."""
    return "; ".join(
        f"{check.name or check.kind} {score.value:g}: {score.reason}"
        for check, score in zip(judge.checks, scores, strict=True)
    )


# The checks


def _compiled(check: "Check", own: Mapping[str, Function], where: str) -> Scorer:
    match check:
        case RegexCheck():
            return _regex(check)
        case NumberCheck():
            return _number(check)
        case JsonCheck():
            return _json(check, where)
        case LengthCheck():
            return _length(check)
        case InstructionsCheck():
            return _follows
        case FunctionCheck():
            return _function(check, own, where)


def _regex(check: RegexCheck) -> Scorer:
    pattern = re.compile(check.pattern)

    def score(_: Question, answer: str) -> Score:
        match = pattern.search(answer)
        said = "no match" if match is None else f"matches at {match.start()}: {_short(repr(match[0]))}"
        return Score(float((match is not None) == check.found), said)

    return score


def last_number(text: str) -> Decimal | None:
    """The last number of a text, exactly; None if it has none."""
    numbers = NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "").replace("−", "-")) if numbers else None


def _number(check: NumberCheck) -> Scorer:
    tolerance = Decimal(str(check.tolerance))  # 0.1 as it is written, not as a float has it

    def score(question: Question, answer: str) -> Score:
        expected, given = last_number(question.chosen or ""), last_number(answer)
        if expected is None:
            return Score(math.nan, "the chosen response has no number")
        if given is None:
            return Score(0.0, f"no number; expected {_short(str(expected))}")
        right = abs(given - expected) <= tolerance
        said = f"{_short(str(given))}, {'as' if right else 'not'} {_short(str(expected))}"
        return Score(float(right), said)

    return score


def _json(check: JsonCheck, where: str) -> Scorer:
    validator = None if check.schema is None else _validator(check.schema)

    def score(_: Question, answer: str) -> Score:
        try:
            value = json.loads(answer, parse_constant=_not_json)
        except (ValueError, RecursionError) as error:
            return Score(0.0, f"not JSON: {_short(_line(error))}")
        if validator is None:
            return Score(1.0, "JSON")
        try:
            fault = validator(value)
        except Exception as error:  # the schema refers to nowhere or to itself, or has a broken pattern
            raise ParamsError(
                f"{where}.schema: cannot be applied ({type(error).__name__}: {_line(error)}); fix it"
            ) from None
        return Score(0.0, _short(fault)) if fault else Score(1.0, "JSON that conforms to the schema")

    return score


def _not_json(name: str) -> Any:
    raise ValueError(f"{name} is none of its values")


def _validator(schema: Mapping[str, Any]) -> Callable[[Any], str]:
    """What a value violates, in words; empty if it conforms."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for
    from referencing import Registry

    # With a registry of its own, it fetches no schemas from the network.
    validator = validator_for(schema, Draft202012Validator)(schema, registry=Registry())

    def fault(value: Any) -> str:
        error = best_match(validator.iter_errors(value))
        return "" if error is None else f"{error.json_path}: {error.message}"

    return fault


def _length(check: LengthCheck) -> Scorer:
    def score(_: Question, answer: str) -> Score:
        length = len(answer.split()) if check.unit == "words" else len(answer)
        right = check.min <= length and (check.max is None or length <= check.max)
        return Score(float(right), f"{length} {check.unit}")

    return score


def _follows(question: Question, answer: str) -> Score:
    stated = list(instructions.found(question.messages[-1]["content"], answer))
    if not stated:
        return Score(math.nan, "the prompt states no instruction that can be checked")
    said = (f"{each.text}: {'followed' if each.followed else 'not followed'}" for each in stated)
    return Score(sum(each.followed for each in stated) / len(stated), _short(", ".join(said)))


def _function(check: FunctionCheck, own: Mapping[str, Function], where: str) -> Scorer:
    if not callable(function := own.get(check.function)):
        raise ParamsError(
            f"{where}.function: '{check.function}' in CHECKS of stages/verify.py is no function; fix the file"
        )

    def score(question: Question, answer: str) -> Score:
        place = f"stages/verify.py: check '{check.function}' on an answer to {question.id}"
        try:
            value = float(_plain(function(copy.deepcopy(question.messages), answer, question.chosen)))
        except Exception as error:  # the user's code may raise anything
            line = traceback.extract_tb(error.__traceback__)[-1]
            raise ParamsError(
                f"{place}: {type(error).__name__}: {_line(error)} (line {line.lineno} of {line.name}); fix the function"
            ) from None
        if not math.isfinite(value):
            raise ParamsError(f"{place}: returned {value}; return a finite number")
        return Score(value, f"{value:g}")

    return score


def _plain(value: Any) -> Any:
    """A number, of numpy or torch too. Raises `TypeError` for anything else, also for a text that looks like one."""
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"it returned {_short(repr(value))}; return a number")
    return value


# Limits


class _OutOfTimeError(BaseException):
    """Not an `Exception`, which the code that takes too long might catch."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises `_OutOfTimeError` in the block after `seconds`, and again every second if something catches it."""

    def stop(_: int, __: "FrameType | None") -> None:
        raise _OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)  # `re`, too, is interrupted by signals
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _short(text: str) -> str:
    return text if len(text) <= SHORT else f"{text[:SHORT]}..."
