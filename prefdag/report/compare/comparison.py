"""Two experiments side by side: their parameters, their metrics, and which differences are significant.

    first, second = experiments.read("HEAD"), experiments.read("workspace")
    table = differences(first, second)
    html = render(first, second, table)

On the page, the first is A and the second B.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from prefdag.report.compare.differences import NAMES, OTHER_ROWS, Difference, Track, image_names
from prefdag.report.compare.experiments import DPO_IMAGE, DPO_TEXT, EVALS, IMAGES, Experiment
from prefdag.report.compare.margins import MARGIN, MarginScale, margin_scale
from prefdag.report.image import disagreements
from prefdag.report.page import numbers
from prefdag.report.page.conclusions import Conclusion
from prefdag.report.page.environment import environment
from prefdag.report.page.figures import Line
from prefdag.report.page.panels import Panel, panel
from prefdag.report.page.results import Histories
from prefdag.runtime.yaml import flatten

INPUTS = {
    EVALS: "Eval sets",
    "data/pairs": "Preference pairs, tokenised and split",
    "models/reference": "Reference of the language model",
    DPO_TEXT: "Policy of the language model",
    IMAGES: "Images",
    "data/image_pairs": "Label pairs and splits",
    "models/resnet_reference": "Reference of the classifier",
    DPO_IMAGE: "Policy of the classifier",
}
HEADLINES = {
    "text": {
        "better": "B ranks unseen preferences better than A.",
        "unclear": "No significant difference between A and B in ranking unseen preferences.",
        "worse": "B ranks unseen preferences worse than A.",
        "same": "A and B rank the same unseen preferences correctly.",
    },
    "image": {
        "better": "B is the more accurate classifier.",
        "unclear": "No significant difference between A and B in accuracy.",
        "worse": "A is the more accurate classifier.",
        "same": "A and B classify the same images correctly.",
    },
}
CONCLUSIONS = {"better": "B is higher", "unclear": "no significant difference", "worse": "B is lower"}
MAIN = {"text": "heldout.rewards.accuracy", "image": "policy.accuracy"}  # the metric that decides the headline
OTHERS = {  # the metrics printed below it
    "text": ("heldout.rewards.margin", "heldout.policy.cross_entropy", "heldout.kl"),
    "image": ("policy.cross_entropy", "kl"),
}
POLICIES = {"text": DPO_TEXT, "image": DPO_IMAGE}


def verdict(track: Track, table: Sequence[Difference], first: Experiment, second: Experiment) -> Conclusion:
    """Whether the two experiments differ significantly on a track, and by how much."""
    by_key = {each.measure.key: each for each in table if each.measure.track == track}
    main, headlines = by_key[MAIN[track]], HEADLINES[track]
    sentences = [sentence(each) for key in (MAIN[track], *OTHERS[track]) if (each := by_key.get(key))]
    if main.note == OTHER_ROWS:
        return Conclusion("unclear", "Not comparable: A and B were evaluated on different rows.", tuple(sentences))
    if main.result is None:
        return Conclusion("unclear", "A and B cannot be compared: there are no per-row results.", tuple(sentences))
    if first.outputs[POLICIES[track]] == second.outputs[POLICIES[track]]:
        sentences.insert(0, "The policies of A and B are identical, byte for byte.")
    same = not main.result.get("alone_right", 1) and not main.result.get("other_alone_right", 1)
    return Conclusion(main.tone, headlines["same" if same else main.tone], tuple(sentences))


def sentence(each: Difference) -> str:
    """A metric of both experiments, their difference, its interval and test, and the conclusion."""
    write, *_ = FORMS[each.measure.form]
    title = f"{each.measure.title}: "
    if each.first is None or each.second is None or each.value is None:
        return f"{title}{each.note}."
    values = f"{title}{write(each.first)} for A, {write(each.second)} for B"
    if each.note:
        return f"{values} ({each.note})."
    difference, span = _difference(each)
    test = f"; McNemar’s exact test: {numbers.p_value(each.result['p'])}" if each.result and "p" in each.result else ""
    alone = ""
    if each.result and "alone_right" in each.result:
        alone = (
            f" B alone is right on {numbers.number(each.result['alone_right'])}, A alone on "
            f"{numbers.number(each.result['other_alone_right'])}."
        )
    rows = f"{numbers.number(each.n or 0)} rows"
    words = conclusion(each)
    return (
        f"{values}. Difference: {difference} (95% interval {span}{test}; {rows}).{alone} {words[0].upper()}{words[1:]}."
    )


def conclusion(each: Difference) -> str:
    """Whether the difference is significant, in words."""
    return "too few rows to judge" if each.few else CONCLUSIONS[each.tone]


def _nats(value: float) -> str:
    return numbers.number(float(value), 4)


def _signed_nats(value: float) -> str:
    return numbers.signed(value, 4)


# For each form: how to write a value, how to write a difference, and the unit of the difference.
FORMS: dict[str, tuple[Callable[[float], str], Callable[[float], str], str]] = {
    "share": (numbers.percent, numbers.points, " points"),
    "signed": (numbers.signed, numbers.signed, ""),
    "nats": (_nats, _signed_nats, " nats"),
}


def _difference(each: Difference) -> tuple[str, str]:
    """A difference and its interval as printed; empty if there is none."""
    if each.value is None:
        return "", ""
    _, write, unit = FORMS[each.measure.form]
    span = f"{write(each.estimate.low)} to {write(each.estimate.high)}" if each.estimate else ""
    return f"{write(each.value)}{unit}", span


def table_rows(track: str, table: Sequence[Difference]) -> list[dict[str, Any]]:
    """The metrics of a track as table cells."""
    return [
        {
            "title": each.measure.title,
            "values": ["" if v is None else FORMS[each.measure.form][0](v) for v in (each.first, each.second)],
            "difference": _difference(each)[0],
            "span": _difference(each)[1],
            "p": numbers.p_value(each.result["p"]) if each.result and "p" in each.result else "",
            "n": each.n,
            "conclusion": each.note or conclusion(each),
        }
        for each in table
        if each.measure.track == track
    ]


def changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The keys whose values differ, in the order of the second, with both values; "absent" if one has no such key."""
    keys = [*second, *(key for key in first if key not in second)]
    values = [[_value(each[key]) if key in each else "absent" for each in (first, second)] for key in keys]
    same = [key in first and key in second and first[key] == second[key] for key in keys]
    return [(key, a, b) for key, (a, b), equal in zip(keys, values, same, strict=True) if not equal]


def _value(value: Any) -> str:
    """A parameter or a metric as its file writes it, with at most six significant digits."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def curves(track: Track, first: Histories, second: Histories, scale: MarginScale) -> list[Panel]:
    """Loss, margin and accuracy of both runs, one figure each; those that a run has."""
    columns = {"Loss": "loss", scale.title: MARGIN, "Pairs ranked correctly": "rewards/accuracy"}
    columns |= {"Policy: accuracy": "accuracy"} if track == "image" else {}
    lines = [Line("A", "first", "A"), Line("B", "second", "B")]
    return [
        drawn
        for title, column in columns.items()
        for drawn in panel(
            overlaid(first, second, column, scale.betas if column == MARGIN else (1.0, 1.0)),
            title,
            lines,
            f"{track}-{column.replace('/', '-')}",
            as_percent="acc" in column,
        )
    ]


def overlaid(first: Histories, second: Histories, column: str, divisors: tuple[float, float] = (1.0, 1.0)) -> Histories:
    """One column of two runs by step, divided by a number each, as columns A and B; empty for a run without it."""

    def frame(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
        series = {
            name: each.set_index("step")[column] / divisor if column in each else pd.Series(dtype=float)
            for name, each, divisor in zip(NAMES, (one, other), divisors, strict=True)
        }
        return pd.concat(series, axis=1).rename_axis("step").sort_index().reset_index()

    return Histories(frame(first.history, second.history), frame(first.validation, second.validation))


def examples(first: Experiment, second: Experiment, count: int) -> list[dict[str, Any]] | None:
    """Held-out pairs that only one run ranks correctly, in groups, largest change of the margin first.

    None if the pairs are not the same.
    """
    columns = ["id", "reward_chosen", "reward_rejected", "margin"]
    one, other = (run.pairs[columns] for run in (first, second))
    if set(one["id"]) != set(other["id"]) or one["margin"].isna().any() or other["margin"].isna().any():
        return None
    rows = one.merge(other, on="id", suffixes=("_a", "_b"))
    right_a, right_b = rows["margin_a"] > 0, rows["margin_b"] > 0
    beta_a, beta_b = margin_scale(first.params, second.params).betas
    moved = (
        (rows["margin_b"] / beta_b - rows["margin_a"] / beta_a).abs().sort_values(ascending=False, kind="stable").index
    )
    groups = {"Ranked correctly only by B": right_b & ~right_a, "Ranked correctly only by A": right_a & ~right_b}
    by_title = {title: rows.loc[moved][mask.loc[moved]] for title, mask in groups.items()}
    filled = {title: group for title, group in by_title.items() if len(group)}
    if not filled:
        return []
    messages = second.files.parquet("data/validated/pairs.parquet", ["id", "source", "prompt", "chosen", "rejected"])
    return [
        {
            "title": title,
            "total": len(group),
            "items": group.head(max(1, count // len(filled)) if count else 0)
            .merge(messages, on="id")
            .to_dict("records"),
        }
        for title, group in filled.items()
    ]


def pictures(first: Experiment, second: Experiment, count: int) -> list[dict[str, Any]] | None:
    """Test images to which the two policies assign different classes; None if the images are not the same."""
    from safetensors.numpy import load

    if set(image_names(first)) != set(image_names(second)):
        return None
    columns = ["index", "label", "policy", "policy_probability"]
    a, b = (
        run.predictions[columns].rename(columns={"policy": name, "policy_probability": f"{name}_probability"})
        for run, name in ((first, "A"), (second, "B"))
    )
    rows = a.merge(b, on=["index", "label"])
    if (rows["A"] == rows["B"]).all():
        return []
    images = load(second.files.read(f"{IMAGES}/images.safetensors"))["images"]
    classes = [str(name) for name in second.files.json(f"{IMAGES}/classes.json")]
    titles = ("Correct only for B", "Correct only for A", "Wrong for both, with different classes")
    return disagreements.pictures(rows, images, classes, NAMES, titles, count)


def render(first: Experiment, second: Experiment, table: Sequence[Difference]) -> str:
    """The page."""
    parameters = changed(first.params, second.params)
    scale = margin_scale(first.params, second.params)
    return (
        environment(autoescape=True)
        .get_template("comparison.html.j2")
        .render(
            names=(first.name, second.name),
            revisions=(first.revision, second.revision),
            parameters=parameters,
            rescaled=any(key.split(".")[0] in ("beta", "loss", "loss_options") for key, *_ in parameters),
            conclusions={
                "Language model": verdict("text", table, first, second),
                "Image classifier": verdict("image", table, first, second),
            },
            text_rows=table_rows("text", table),
            image_rows=table_rows("image", table),
            margins=scale.betas != (1.0, 1.0),
            text_curves=curves("text", first.text, second.text, scale),
            image_curves=curves("image", first.image, second.image, scale),
            metrics=changed(flatten(first.metrics), flatten(second.metrics)),
            examples=examples(first, second, second.params["report.text_examples"]),
            pairs=len(second.pairs),
            pictures=pictures(first, second, second.params["report.image_examples"]),
            inputs=[
                (title, path, *(run.outputs.get(path, "absent") for run in (first, second)))
                for path, title in INPUTS.items()
            ],
        )
    )
