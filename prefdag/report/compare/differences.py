"""By how much two experiments differ, and whether the rows that both were measured on tell them apart.

A difference is second minus first, of what the metrics say. It has an interval where both were measured on the same rows,
and these rows are kept: they are paired, so that what makes a row hard cancels out. Rows that only partly are the same are
not compared: what one run held out, the other may have trained on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from prefdag.report.compare.experiments import EVALS, IMAGES, Experiment
from prefdag.report.page import phrases as words
from prefdag.report.page.phrases import Estimate, Tone
from prefdag.report.page.report_page import CHOICES, SETS
from prefdag.runtime.yaml import flatten
from prefdag.stats import paired

Track = Literal["text", "image"]
NAMES = ("A", "B")
FEW = 20  # rows
OTHER_ROWS, NO_ROWS = "not comparable: other rows", "no interval: a figure of the whole, not of rows"


@dataclass(frozen=True)
class Measure:
    """A figure of the metrics: its dotted key, how it is written, and its rows where there are some.

    `rows` gives `value` and `weight` by the rows' names, so that sum(value) / sum(weight) is the figure; None where an
    experiment has no such rows.
    """

    track: Track
    title: str
    key: str
    form: Literal["share", "signed", "nats"]
    rows: Callable[[Experiment], pd.DataFrame | None] | None = None


@dataclass(frozen=True)
class Difference:
    """A figure of both, and second minus first where both have it. `found` is what `paired` says of the rows, over `n`."""

    measure: Measure
    first: float | None
    second: float | None
    found: Mapping[str, float] | None
    n: int | None
    note: str

    @property
    def value(self) -> float | None:
        """Second minus first."""
        return None if self.first is None or self.second is None else self.second - self.first

    @property
    def estimate(self) -> Estimate | None:
        """The difference with its interval, where it has one."""
        return Estimate.of(self.found, "difference") if self.found else None

    @property
    def few(self) -> bool:
        """Whether there are too few rows for a bootstrap, whose intervals are then too narrow."""
        return self.found is not None and "p" not in self.found and (self.n or 0) < FEW

    @property
    def tone(self) -> Tone:
        """What the rows show of second against first: more, less, or neither."""
        if not self.found or self.few:
            return "unclear"
        return words.paired_tone({"p": 0.0, **self.found})  # an interval alone decides where there is no test


def measures() -> list[Measure]:
    """Everything that is compared with its rows or stands in both reports' first lines, in the order of the report."""
    return [
        Measure("text", "Pairs ranked right", "heldout.rewards.accuracy", "share", _ranked),
        Measure("text", "Mean reward margin", "heldout.rewards.margin", "signed", _column("margin")),
        Measure("text", "Mean reward, chosen", "heldout.rewards.chosen", "signed", _column("reward_chosen")),
        Measure("text", "Mean reward, rejected", "heldout.rewards.rejected", "signed", _column("reward_rejected")),
        Measure("text", "KL to the reference, nats a token", "heldout.kl", "nats"),
        *(
            Measure("text", f"Cross-entropy: {title}", f"{name}.policy.cross_entropy", "nats", _cross_entropy(name))
            for name, title in SETS.items()
        ),
        *(
            Measure("text", title, f"choices.{name}.policy.{column}", "share", _choices(name, column))
            for title, (name, column) in CHOICES.items()
        ),
        Measure("image", "Accuracy", "policy.accuracy", "share", _classified),
        Measure("image", "Cross-entropy, nats an image", "policy.cross_entropy", "nats", _image_cross_entropy),
        Measure("image", "Calibration error", "policy.calibration_error", "share"),
        Measure("image", "Pairs ranked right", "rewards.accuracy", "share"),
        Measure("image", "Mean reward margin", "rewards.margin", "signed"),
        Measure("image", "KL to the reference, nats an image", "kl", "nats"),
        Measure("image", "Accuracy of the control", "control.accuracy", "share", _control),
    ]


def differences(first: Experiment, second: Experiment) -> list[Difference]:
    """All measures that one of the two has."""
    found = [_difference(measure, first, second) for measure in measures()]
    return [each for each in found if not each.first is each.second is None]


def to_frame(table: list[Difference]) -> pd.DataFrame:
    """The differences as a table, a row a measure."""
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
                "p": each.found.get("p") if each.found else None,
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
        return Difference(measure, values[0], values[1], None, None, f"{name} has none")
    tables = [measure.rows(each) if measure.rows else None for each in (first, second)]
    if tables[0] is None or tables[1] is None:
        return Difference(measure, values[0], values[1], None, None, NO_ROWS)
    one, other = tables[0].sort_index(), tables[1].sort_index()
    if not one.index.equals(other.index) or not one["weight"].equals(other["weight"]):
        return Difference(measure, values[0], values[1], None, None, OTHER_ROWS)
    before, after, weight = one["value"].to_numpy(), other["value"].to_numpy(), one["weight"].to_numpy(float)
    counted = measure.form == "share" and np.isin((before, after), (0.0, 1.0)).all()
    found = paired.shares(after == 1, before == 1) if counted else paired.means(after, before, weight)
    return Difference(measure, values[0], values[1], found, len(one), "")


# Rows of a measure


def _rows(names: Any, value: Any, weight: Any = 1.0) -> pd.DataFrame:
    return pd.DataFrame({"value": np.asarray(value, float), "weight": weight}, index=pd.Index(names))


def _ranked(run: Experiment) -> pd.DataFrame | None:
    """The share of a pair's labels that agrees with the sign of its margin; a tie agrees with none."""
    pairs = run.pairs
    if pairs["margin"].isna().any():  # lone responses: the figure is an area under a curve
        return None
    agrees = np.select([pairs["margin"] > 0, pairs["margin"] < 0], [pairs["preference"], 1 - pairs["preference"]], 0.0)
    return _rows(pairs["id"], agrees)


def _column(name: str) -> Callable[[Experiment], pd.DataFrame | None]:
    """A column of the held-out pairs."""

    def rows(run: Experiment) -> pd.DataFrame | None:
        return None if run.pairs["margin"].isna().any() else _rows(run.pairs["id"], run.pairs[name])

    return rows


def _cross_entropy(name: str) -> Callable[[Experiment], pd.DataFrame]:
    """The responses of a set, in nats, weighted by their tokens."""

    def rows(run: Experiment) -> pd.DataFrame:
        part = run.rows[run.rows["set"] == name]
        where = "" if name == "heldout" else run.outputs[EVALS]
        return _rows(where + part["row"].astype(str), -part["policy_logps"], part["n_tokens"].to_numpy())

    return rows


def _choices(name: str, column: str) -> Callable[[Experiment], pd.DataFrame]:
    """The questions of a set under the policy."""
    stored = {"accuracy": "correct"}.get(column, column)

    def rows(run: Experiment) -> pd.DataFrame:
        part = run.choices[(run.choices["set"] == name) & (run.choices["model"] == "policy")]
        return _rows(run.outputs[EVALS] + part["source"].astype(str), part[stored])

    return rows


def _classified(run: Experiment, model: str = "policy") -> pd.DataFrame:
    """Which test images a classifier gets right."""
    return _rows(image_names(run), run.predictions[model] == run.predictions["label"])


def _control(run: Experiment) -> pd.DataFrame:
    return _classified(run, "control")


def _image_cross_entropy(run: Experiment) -> pd.DataFrame | None:
    """The nats of the true class; nothing where a probability is too small for a float."""
    probability = run.predictions["policy_probability"]
    return None if (probability == 0).any() else _rows(image_names(run), -np.log(probability))


def image_names(run: Experiment) -> pd.Series:
    """The names of the test images: the hash of all images, and the place in it."""
    return run.outputs[IMAGES] + ":" + run.predictions["index"].astype(str)
