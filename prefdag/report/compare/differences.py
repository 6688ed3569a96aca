"""How much two experiments differ, and whether the difference is significant.

A difference is the second experiment's metric minus the first's. It has an interval if both were evaluated on the same rows
and the per-row values were saved. The rows are paired, so the difficulty of a row cancels out. If only some of the rows are
the same, nothing is compared: one run may have trained on what the other held out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from prefdag.report.compare.experiments import EVALS, IMAGES, Experiment
from prefdag.report.compare.margins import same_scale
from prefdag.report.page.conclusions import paired_tone
from prefdag.report.page.numbers import Estimate, Tone
from prefdag.report.text.tables import CHOICES, SETS
from prefdag.runtime.yaml import flatten
from prefdag.stats import paired

Track = Literal["text", "image"]
NAMES = ("A", "B")
FEW = 20  # with fewer rows, the intervals of a bootstrap are too narrow
OTHER_ROWS = "not comparable: different rows"
OTHER_SCALE = "not comparable: other scale of rewards"
NO_ROWS = "no interval: this metric has no per-row values"


@dataclass(frozen=True)
class Measure:
    """A metric that is compared: its dotted key, its number format, and its per-row values, if any.

    `rows` returns `value` and `weight`, indexed by the names of the rows, such that sum(value) / sum(weight) is the metric.
    It returns None if an experiment has no such rows.
    """

    track: Track
    title: str
    key: str
    form: Literal["share", "signed", "nats"]
    rows: Callable[[Experiment], pd.DataFrame | None] | None = None


@dataclass(frozen=True)
class Difference:
    """A metric of both experiments, and second minus first if both have it.

    `result` is the paired comparison (`stats.paired`) of `n` rows; None, with the reason in `note`, if there is none.
    """

    measure: Measure
    first: float | None
    second: float | None
    result: Mapping[str, float] | None
    n: int | None
    note: str

    @property
    def value(self) -> float | None:
        """Second minus first."""
        return None if self.first is None or self.second is None else self.second - self.first

    @property
    def estimate(self) -> Estimate | None:
        """The difference with its interval, if it has one."""
        return Estimate.of(self.result, "difference") if self.result else None

    @property
    def few(self) -> bool:
        """Whether there are too few rows for a bootstrap; see `FEW`."""
        return self.result is not None and "p" not in self.result and (self.n or 0) < FEW

    @property
    def tone(self) -> Tone:
        """Whether the second is significantly higher ("better"), lower ("worse"), or neither ("unclear")."""
        if not self.result or self.few:
            return "unclear"
        return paired_tone({"p": 0.0, **self.result})  # without a test, the interval alone decides


def measures() -> list[Measure]:
    """All metrics that are compared, in the order of the report."""
    return [
        Measure("text", "Pairs ranked correctly", "heldout.rewards.accuracy", "share", _ranked),
        Measure("text", "Mean reward margin", "heldout.rewards.margin", "signed", _column("margin")),
        Measure("text", "Mean reward, chosen", "heldout.rewards.chosen", "signed", _column("reward_chosen")),
        Measure("text", "Mean reward, rejected", "heldout.rewards.rejected", "signed", _column("reward_rejected")),
        Measure("text", "KL to the reference, nats per token", "heldout.kl", "nats"),
        *(
            Measure("text", f"Cross-entropy: {title}", f"{name}.policy.cross_entropy", "nats", _cross_entropy(name))
            for name, title in SETS.items()
        ),
        *(
            Measure("text", title, f"choices.{name}.policy.{column}", "share", _choices(name, column))
            for title, (name, column) in CHOICES.items()
        ),
        Measure("image", "Accuracy", "policy.accuracy", "share", _classified),
        Measure("image", "Cross-entropy, nats per image", "policy.cross_entropy", "nats", _image_cross_entropy),
        Measure("image", "Calibration error", "policy.calibration_error", "share"),
        Measure("image", "Pairs ranked correctly", "rewards.accuracy", "share"),
        Measure("image", "Mean reward margin", "rewards.margin", "signed"),
        Measure("image", "KL to the reference, nats per image", "kl", "nats"),
        Measure("image", "Accuracy of the control", "control.accuracy", "share", _control),
    ]


def differences(first: Experiment, second: Experiment) -> list[Difference]:
    """All metrics that at least one of the two experiments has."""
    table = [_difference(measure, first, second) for measure in measures()]
    return [each for each in table if not each.first is each.second is None]


def to_frame(table: list[Difference]) -> pd.DataFrame:
    """The differences as a table, one row per metric."""
    return pd.DataFrame(
        [
            {
                "track": each.measure.track,
                "measure": each.measure.title,
                "key": each.measure.key,
                "a": each.first,
                "b": each.second,
                "difference": each.value,
                "low": each.estimate.low if each.estimate else None,
                "high": each.estimate.high if each.estimate else None,
                "p": each.result.get("p") if each.result else None,
                "n": each.n,
                "note": each.note,
            }
            for each in table
        ]
    ).astype({"n": "Int64"})


def _difference(measure: Measure, first: Experiment, second: Experiment) -> Difference:
    values = [flatten(each.metrics[measure.track]).get(measure.key) for each in (first, second)]
    if None in values:
        name = NAMES[values.index(None)]
        return Difference(measure, values[0], values[1], None, None, f"missing in {name}")
    if measure.form == "signed" and not same_scale(first.params, second.params):
        return Difference(measure, values[0], values[1], None, None, OTHER_SCALE)
    tables = [measure.rows(each) if measure.rows else None for each in (first, second)]
    if tables[0] is None or tables[1] is None:
        return Difference(measure, values[0], values[1], None, None, NO_ROWS)
    one, other = tables[0].sort_index(), tables[1].sort_index()
    if not one.index.equals(other.index) or not one["weight"].equals(other["weight"]):
        return Difference(measure, values[0], values[1], None, None, OTHER_ROWS)
    before, after, weight = one["value"].to_numpy(), other["value"].to_numpy(), one["weight"].to_numpy(float)
    binary = measure.form == "share" and np.isin((before, after), (0.0, 1.0)).all()
    result = paired.shares(after == 1, before == 1) if binary else paired.means(after, before, weight)
    return Difference(measure, values[0], values[1], result, len(one), "")


# The per-row values of a metric


def _rows(names: Any, value: Any, weight: Any = 1.0) -> pd.DataFrame:
    return pd.DataFrame({"value": np.asarray(value, float), "weight": weight}, index=pd.Index(names))


def _ranked(run: Experiment) -> pd.DataFrame | None:
    """For each pair, the share of its labels that agree with the sign of the margin; 0 for a tie."""
    pairs = run.pairs
    if pairs["margin"].isna().any():  # unpaired responses: the metric is an area under a curve
        return None
    agrees = np.select([pairs["margin"] > 0, pairs["margin"] < 0], [pairs["preference"], 1 - pairs["preference"]], 0.0)
    return _rows(pairs["id"], agrees)


def _column(name: str) -> Callable[[Experiment], pd.DataFrame | None]:
    """A column of the held-out pairs."""

    def rows(run: Experiment) -> pd.DataFrame | None:
        return None if run.pairs["margin"].isna().any() else _rows(run.pairs["id"], run.pairs[name])

    return rows


def _cross_entropy(name: str) -> Callable[[Experiment], pd.DataFrame]:
    """The cross-entropy of the responses of a set in nats, weighted by their tokens."""

    def rows(run: Experiment) -> pd.DataFrame:
        part = run.rows[run.rows["set"] == name]
        where = "" if name == "heldout" else run.outputs[EVALS]
        return _rows(where + part["row"].astype(str), -part["policy_logps"], part["n_tokens"].to_numpy())

    return rows


def _choices(name: str, column: str) -> Callable[[Experiment], pd.DataFrame]:
    """The policy's score on each question of a set."""
    stored = {"accuracy": "correct"}.get(column, column)

    def rows(run: Experiment) -> pd.DataFrame:
        part = run.choices[(run.choices["set"] == name) & (run.choices["model"] == "policy")]
        return _rows(run.outputs[EVALS] + part["source"].astype(str), part[stored])

    return rows


def _classified(run: Experiment, model: str = "policy") -> pd.DataFrame:
    """Which test images a classifier classifies correctly."""
    return _rows(image_names(run), run.predictions[model] == run.predictions["label"])


def _control(run: Experiment) -> pd.DataFrame:
    return _classified(run, "control")


def _image_cross_entropy(run: Experiment) -> pd.DataFrame | None:
    """The cross-entropy of each image in nats; None if a probability underflowed to 0."""
    probability = run.predictions["policy_probability"]
    return None if (probability == 0).any() else _rows(image_names(run), -np.log(probability))


def image_names(run: Experiment) -> pd.Series:
    """The names of the test images: the hash of the image set, and the position in it."""
    return run.outputs[IMAGES] + ":" + run.predictions["index"].astype(str)
