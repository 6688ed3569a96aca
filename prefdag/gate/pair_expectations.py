"""What the data gate expects of preference pairs.

Importing this module imports Great Expectations, which takes seconds: stages import it inside `main`.
"""

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

if TYPE_CHECKING:
    from prefdag.config.validate_pairs import PairLevels, PairShares


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


def pairs_table(pairs: pd.DataFrame, meetings: pd.DataFrame, levels: "PairLevels", similarity: float) -> Table:
    """The pairs of `schema.read_pairs` as a table of texts; `prompt` is its last turn.

    Expectations hold for the responses that there are: unpaired rows have one. `response` is any of them.

    Args:
        meetings: with rows of eval sets, from `contamination`.
    """
    copies, conflicts = copy_of(pairs["source"], pairs["id"]), conflict_with(pairs)
    rows = pairs.assign(
        prompt=pairs["prompt"].map(lambda turns: turns[-1]["content"], na_action="ignore"),
        # An unreadable row has its own fault; it needs no second one.
        response=pairs["chosen"].fillna(pairs["rejected"]).where(pairs["fault"].isna(), ""),
        copy_of=copies,
        near_copy_of=near_copy_of(pairs["source"], _texts(pairs).where(copies.isna() & conflicts.isna()), similarity),
        conflict_with=conflicts,
        contaminates=pairs["source"].map(meetings.groupby("pair", sort=False)["row"].first()),
    )
    texts = ("prompt", "chosen", "rejected")
    blank = {
        column: "the last turn holds text" if column == "prompt" else "the response holds text" for column in texts
    }
    expectations = [
        none_in("fault", levels.invalid, "every row can be read", "column `fault` says where and why not"),
        gxe.ExpectColumnValuesToNotBeNull(
            column="response",
            description="the row has a response",
            notes="neither chosen nor rejected; write one or remove the row",
            **at(levels.invalid),
        ),
        *(
            ExpectColumnValuesToNotBeBlank(
                column=column,
                description=description,
                notes="blank; write it or remove the row",
                **at(levels.invalid),
            )
            for column, description in blank.items()
        ),
        ExpectColumnPairValuesToDiffer(
            column_A="rejected",
            column_B="chosen",
            description="chosen and rejected differ",
            notes="the same response as chosen, so nothing is preferred; remove the row",
            **at(levels.invalid),
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="preference",
            min_value=0,
            max_value=1,
            description="the preference is a probability",
            notes="not from 0 to 1; write the probability that chosen is preferred",
            **at(levels.invalid),
        ),
        none_in("copy_of", levels.duplicate, "no row stands twice", "the same content as an earlier row; remove it"),
        none_in(
            "near_copy_of",
            levels.near_duplicate,
            "no row stands twice in nearly the same words",
            "nearly the same words as an earlier row; keep one of them",
        ),
        none_in(
            "conflict_with",
            levels.conflict,
            "no row contradicts another",
            "the other way round in another row; remove one, or write a preference between 0 and 1 in one",
        ),
        none_in(
            "contaminates",
            levels.contamination,
            "no row of an eval set stands in it",
            "words of an eval set, whose score then says nothing; remove the row",
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
    ]
    return Table("pairs", rows, expectations)


# What a share above its level says, and the remedy.
SHARES = {
    "longer_preferred": (
        "length is not what is preferred",
        "DPO will learn length; balance the pairs, or see ld_alpha",
    ),
    "disagreement": ("annotators agree", "the labels say little; look at how they were collected"),
    "repeated_prompts": ("prompts are many", "few prompts, over and over; add others"),
    "repeated_runs": (
        "responses are not made from a few phrases",
        "the same phrases, over and over; add other responses",
    ),
    "other_scripts": ("rows are of one script", "several scripts; look whether the languages are those that you want"),
    "largest_origin": ("no origin crowds out the others", "nearly all rows are of one origin; balance them"),
}


def shares_table(measured: pd.DataFrame, levels: "PairShares") -> Table:
    """The shares of `measures.measures`: their lower ends, a row for all rows and one for each origin, a column a measure."""
    rows = measured.pivot(index="source", columns="measure", values="low").round(4).reindex(columns=list(SHARES))
    order = list(dict.fromkeys(measured["source"]))
    expectations: list[Expectation] = [
        gxe.ExpectColumnValuesToBeBetween(
            column=name,
            max_value=bound,
            description=f"{holds} (at most {bound:g})",
            notes=f"above {bound:g}, validate_pairs.shares.{name}.{level}: {remedy}",
            **at(level),
        )
        for name, (holds, remedy) in SHARES.items()
        for level in ("warn", "error")
        if (bound := getattr(getattr(levels, name), level)) is not None
    ]
    return Table("shares", rows.loc[order].astype("float64").reset_index(), expectations)


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
