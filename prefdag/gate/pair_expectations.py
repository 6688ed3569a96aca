"""The data gate's expectations of preference pairs.

Importing this module imports Great Expectations, which takes seconds, so stages import it inside `main`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation, ColumnPairMapExpectation, Expectation
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    ColumnPairMapMetricProvider,
    column_condition_partial,
    column_pair_condition_partial,
)

from prefdag.gate.checks import Table, at, none_in
from prefdag.gate.duplicates import conflict_with, copy_of, near_copy_of
from prefdag.gate.measures import MEASURES, row_texts

if TYPE_CHECKING:
    from prefdag.config.levels import Level
    from prefdag.config.validate_pairs import MeasureName, PairLevels, ShareLevels


class ColumnValuesNotBlank(ColumnMapMetricProvider):
    condition_metric_name = "column_values.not_blank"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **kwargs: Any) -> pd.Series:  # noqa: N805 - Great Expectations makes it a classmethod
        # Not a regex: pandas may pass it to a library whose \S only knows ASCII.
        return column.map(lambda text: bool(text.strip()))


class ExpectColumnValuesToNotBeBlank(ColumnMapExpectation):
    """Expect every text to have something other than white space."""

    map_metric = "column_values.not_blank"


class ColumnPairValuesDiffer(ColumnPairMapMetricProvider):
    condition_metric_name = "column_pair_values.differ"
    condition_domain_keys = ("batch_id", "table", "column_A", "column_B", "ignore_row_if")

    @column_pair_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column_A: pd.Series, column_B: pd.Series, **kwargs: Any) -> pd.Series:  # noqa: N803, N805
        return column_A != column_B


class ExpectColumnPairValuesToDiffer(ColumnPairMapExpectation):
    """Expect two columns to differ in every row."""

    map_metric = "column_pair_values.differ"
    success_keys = ("ignore_row_if", "mostly")
    ignore_row_if: str = "either_value_is_missing"


# A lost character; or UTF-8 that was read as Latin-1 or Windows-1252, so that "é" became "Ã©", "’" "â€™".
BROKEN_TEXT = "\ufffd|[ÂÃ][\u0080-\u00bf]|â€[\u0080-\u00bf˜™œž“”¢¦]"


def pairs_table(pairs: pd.DataFrame, overlaps: pd.DataFrame, levels: "PairLevels", similarity: float) -> Table:
    """The pairs of `schema.read_pairs` as a table of texts. Its `prompt` is the last turn, its `response` either response.

    A response is its text with its tool calls and reasoning, as JSON.

    Expectations apply to the responses that a row has: an unpaired row has one.

    Args:
        overlaps: with rows of eval sets, from `contamination.find_overlaps`.
    """
    pairs = pairs.assign(**{side: whole_response(pairs, side) for side in ("chosen", "rejected")})
    copies, conflicts = copy_of(pairs["source"], pairs["id"]), conflict_with(pairs)
    rows = pairs.assign(
        prompt=pairs["prompt"].map(lambda turns: turns[-1]["content"], na_action="ignore"),
        score_order=score_order(pairs),
        # An unreadable row already has a fault; it does not need a second one.
        response=pairs["chosen"].fillna(pairs["rejected"]).where(pairs["fault"].isna(), ""),
        copy_of=copies,
        near_copy_of=near_copy_of(
            pairs["source"], row_texts(pairs).where(copies.isna() & conflicts.isna()), similarity
        ),
        conflict_with=conflicts,
        contaminates=pairs["source"].map(overlaps.groupby("pair", sort=False)["row"].first()),
    )
    texts = ("prompt", "chosen", "rejected")
    not_blank = {
        "prompt": "the last turn has text",
        "chosen": "the response has text",
        "rejected": "the response has text",
    }
    expectations = [
        none_in("fault", levels.invalid, "every row can be read", "the column `fault` says where and why it cannot"),
        gxe.ExpectColumnValuesToNotBeNull(
            column="response",
            description="the row has a response",
            notes="neither chosen nor rejected; add one or remove the row",
            **at(levels.invalid),
        ),
        *(
            ExpectColumnValuesToNotBeBlank(
                column=column,
                description=description,
                notes="blank; fill it in or remove the row",
                **at(levels.invalid),
            )
            for column, description in not_blank.items()
        ),
        ExpectColumnPairValuesToDiffer(
            column_A="rejected",
            column_B="chosen",
            description="chosen and rejected differ",
            notes="the same response as chosen, so there is no preference; remove the row",
            **at(levels.invalid),
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="preference",
            min_value=0,
            max_value=1,
            description="the preference is a probability",
            notes="not between 0 and 1; give the probability that chosen is preferred",
            **at(levels.invalid),
        ),
        none_in("copy_of", levels.duplicate, "no two rows are equal", "the same content as an earlier row; remove it"),
        none_in(
            "near_copy_of",
            levels.near_duplicate,
            "no two rows have nearly the same words",
            "nearly the same words as an earlier row; keep one of them",
        ),
        none_in(
            "conflict_with",
            levels.conflict,
            "no row contradicts another",
            "another row has the opposite preference; remove one, or give one a preference between 0 and 1",
        ),
        none_in(
            "contaminates",
            levels.contamination,
            "no row contains a row of an eval set",
            "contains text of an eval set, which makes its score meaningless; remove the row",
        ),
        none_in(
            "score_order",
            levels.score_order,
            "the chosen response has the higher score",
            "chosen has no higher score than rejected; remove the row, or set score_scale to train on the scores",
        ),
        *(
            gxe.ExpectColumnValuesToNotMatchRegex(
                column=column,
                regex=BROKEN_TEXT,
                description="the text has no encoding errors",
                notes="lost characters, or UTF-8 read as another encoding; fetch the text again",
                **at(levels.encoding),
            )
            for column in texts
        ),
    ]
    return Table("pairs", rows, expectations)


def whole_response(pairs: pd.DataFrame, side: str) -> "pd.Series[str]":
    """The text of a response, and its tool calls and reasoning below it."""
    extra = pairs[f"{side}_extra"]
    return pairs[side].where(extra.isna(), pairs[side] + "\n" + extra)


def score_order(pairs: pd.DataFrame) -> "pd.Series[str]":
    """What is wrong with the scores of a row, null if chosen has the higher one.

    If the preference is below 0.5, rejected has to have the higher one.
    """
    faults = []
    for chosen, rejected, preference in pairs[["score_chosen", "score_rejected", "preference"]].itertuples(index=False):
        higher = chosen - rejected if preference >= 0.5 else rejected - chosen
        order = "tie" if higher == 0 else "inversion" if higher < 0 else None  # both scores are NaN without any
        faults.append(order and f"{order}: chosen {chosen:g}, rejected {rejected:g}")
    return pd.Series(faults, pairs.index, "str")


def shares_table(shares: pd.DataFrame, levels: Mapping["MeasureName", "ShareLevels"]) -> Table:
    """The lower ends of `measures.measure_shares`: one row for all rows and one per origin, one column per measure."""
    rows = shares.pivot(index="source", columns="measure", values="low").round(4).reindex(columns=list(MEASURES))
    order = list(dict.fromkeys(shares["source"]))
    expectations: list[Expectation] = [
        gxe.ExpectColumnValuesToBeBetween(
            column=name,
            max_value=bound,
            description=f"{measure.title}: at most {bound:g}",
            notes=f"above {bound:g}, validate_pairs.shares.{name}.{level}: {measure.remedy}",
            **at(level),
        )
        for name, measure in MEASURES.items()
        for level, bound in _bounds(levels[name])
    ]
    return Table("shares", rows.loc[order].astype("float64").reset_index(), expectations)


def _bounds(levels: "ShareLevels") -> list[tuple["Level", float]]:
    """The levels of a measure that have a bound."""
    bounds: list[tuple[Level, float | None]] = [("warn", levels.warn), ("error", levels.error)]
    return [(level, bound) for level, bound in bounds if bound is not None]
