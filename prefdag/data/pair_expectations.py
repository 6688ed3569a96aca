"""What the data gate expects of preference pairs.

Importing this module imports Great Expectations, which takes seconds: stages import it inside `main`.
"""

from typing import Any

import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation, ColumnPairMapExpectation
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    ColumnPairMapMetricProvider,
    column_condition_partial,
    column_pair_condition_partial,
)

from prefdag.config import PairLevels
from prefdag.data.checks import Table, at
from prefdag.data.duplicates import conflict_with, copy_of, near_copy_of


class ColumnValuesNotBlank(ColumnMapMetricProvider):
    condition_metric_name = "column_values.not_blank"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **kwargs: Any) -> pd.Series:  # noqa: N805 - Great Expectations makes it a classmethod
        # Not a regex: pandas may hand it to a library whose \S knows ASCII only.
        return column.map(lambda text: bool(text.strip()))


class ExpectColumnValuesToNotBeBlank(ColumnMapExpectation):
    """Expect every text to hold something other than white space."""

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


# Where a character was lost; where UTF-8 was read as Latin-1 or Windows-1252, and "é" became "Ã©", "’" "â€™".
BROKEN_TEXT = "\ufffd|[ÂÃ][\u0080-\u00bf]|â€[\u0080-\u00bf˜™œž“”¢¦]"


def pairs_table(pairs: pd.DataFrame, levels: PairLevels, similarity: float) -> Table:
    """The pairs of `schema.read_pairs` as a table of texts; `prompt` is its last turn.

    Expectations hold for the responses that there are: unpaired rows have one. `response` is any of them.
    """
    copies, conflicts = copy_of(pairs["source"], pairs["id"]), conflict_with(pairs)
    rows = pairs.assign(
        prompt=pairs["prompt"].map(lambda turns: turns[-1]["content"], na_action="ignore"),
        # An unreadable row has its own fault; it needs no second one.
        response=pairs["chosen"].fillna(pairs["rejected"]).where(pairs["fault"].isna(), ""),
        copy_of=copies,
        near_copy_of=near_copy_of(pairs["source"], _texts(pairs).where(copies.isna() & conflicts.isna()), similarity),
        conflict_with=conflicts,
    )
    invalid = at(levels.invalid)
    texts = ("prompt", "chosen", "rejected")
    return Table(
        "pairs",
        rows,
        [
            gxe.ExpectColumnValuesToBeNull(
                column="fault",
                description="every row can be read",
                notes="column `fault` says where and why not",
                **invalid,
            ),
            gxe.ExpectColumnValuesToNotBeNull(
                column="response",
                description="the row has a response",
                notes="neither chosen nor rejected; write one or remove the row",
                **invalid,
            ),
            *(
                ExpectColumnValuesToNotBeBlank(
                    column=column,
                    description="the last turn holds text" if column == "prompt" else "the response holds text",
                    notes="blank; write it or remove the row",
                    **invalid,
                )
                for column in texts
            ),
            ExpectColumnPairValuesToDiffer(
                column_A="rejected",
                column_B="chosen",
                description="chosen and rejected differ",
                notes="the same response as chosen, so nothing is preferred; remove the row",
                **invalid,
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column="preference",
                min_value=0,
                max_value=1,
                description="the preference is a probability",
                notes="not from 0 to 1; write the probability that chosen is preferred",
                **invalid,
            ),
            gxe.ExpectColumnValuesToBeNull(
                column="copy_of",
                description="no row stands twice",
                notes="the same content as an earlier row; remove it",
                **at(levels.duplicate),
            ),
            gxe.ExpectColumnValuesToBeNull(
                column="near_copy_of",
                description="no row stands twice in nearly the same words",
                notes="nearly the same words as an earlier row; keep one of them",
                **at(levels.near_duplicate),
            ),
            gxe.ExpectColumnValuesToBeNull(
                column="conflict_with",
                description="no row contradicts another",
                notes="the other way round in another row; remove one, or write a preference between 0 and 1 in one",
                **at(levels.conflict),
            ),
            *(
                gxe.ExpectColumnValuesToNotMatchRegex(
                    column=column,
                    regex=BROKEN_TEXT,
                    description="the text is as it was written",
                    notes="characters lost, or UTF-8 read as another encoding; fetch the text again",
                    **at(levels.encoding),
                )
                for column in texts
            ),
        ],
    )


def _texts(pairs: pd.DataFrame) -> "pd.Series[str]":
    """All that a row says: its turns and its responses; null where it cannot be read."""
    rows = pairs[["prompt", "chosen", "rejected"]].itertuples(index=False)
    said = [
        "\n".join([*(turn["content"] for turn in prompt), *(side for side in sides if isinstance(side, str))])
        if isinstance(prompt, list)
        else None
        for prompt, *sides in rows
    ]
    return pd.Series(said, pairs.index, "str")
