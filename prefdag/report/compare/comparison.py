"""Two experiments side by side: how they were made, what they measured, and whether rows tell them apart.

    first, second = experiments.read("HEAD"), experiments.read("workspace")
    table = differences(first, second)
    html = render(first, second, table)

On the page the first is A and the second B.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from prefdag.report.compare.differences import NAMES, OTHER_ROWS, Difference, Track, image_names
from prefdag.report.compare.experiments import DPO_IMAGE, DPO_TEXT, EVALS, IMAGES, Experiment
from prefdag.report.image import disagreements as changes
from prefdag.report.page import phrases as words
from prefdag.report.page.figures import Line
from prefdag.report.page.phrases import Verdict
from prefdag.report.page.report_page import Panel, environment, panel
from prefdag.report.page.results import Run
from prefdag.runtime.yaml import flatten

INPUTS = {
    EVALS: "Eval sets",
    "data/pairs": "Preference pairs, as tokenised and split",
    "models/reference": "Reference of the language model",
    DPO_TEXT: "Policy of the language model",
    IMAGES: "Images",
    "data/image_pairs": "Label pairs and their splits",
    "models/resnet_reference": "Reference of the classifier",
    DPO_IMAGE: "Policy of the classifier",
}
HEADLINES = {
    "text": {
        "better": "B ranks unseen preferences better than A.",
        "unclear": "Not shown: that A or B ranks unseen preferences better.",
        "worse": "B ranks unseen preferences worse than A.",
        "same": "A and B rank the same unseen preferences right.",
    },
    "image": {
        "better": "B is the more accurate classifier.",
        "unclear": "Not shown: that A or B is the more accurate classifier.",
        "worse": "A is the more accurate classifier.",
        "same": "A and B get the same images right.",
    },
}
SHOWN = {"better": "B is higher", "unclear": "a null result", "worse": "B is lower"}
FIRST = {"text": "heldout.rewards.accuracy", "image": "policy.accuracy"}  # what a headline goes by
SAID = {  # and the figures beside it
    "text": ("heldout.rewards.margin", "heldout.policy.cross_entropy", "heldout.kl"),
    "image": ("policy.cross_entropy", "kl"),
}
POLICIES = {"text": DPO_TEXT, "image": DPO_IMAGE}


def verdict(track: Track, table: Sequence[Difference], first: Experiment, second: Experiment) -> Verdict:
    """What tells the two apart on a track, if anything does. A null result is called one."""
    of = {each.measure.key: each for each in table if each.measure.track == track}
    main, headlines = of[FIRST[track]], HEADLINES[track]
    sentences = [sentence(each) for key in (FIRST[track], *SAID[track]) if (each := of.get(key))]
    if main.note == OTHER_ROWS:
        return Verdict("unclear", "Not comparable: A and B were measured on other rows.", tuple(sentences))
    if main.found is None:
        return Verdict("unclear", "Not shown: there are no rows to tell A and B apart by.", tuple(sentences))
    if first.outputs[POLICIES[track]] == second.outputs[POLICIES[track]]:
        sentences.insert(0, "Both trained the same policy, byte for byte.")
    alike = not main.found.get("alone_right", 1) and not main.found.get("other_alone_right", 1)
    return Verdict(main.tone, headlines["same" if alike else main.tone], tuple(sentences))


def sentence(each: Difference) -> str:
    """A figure of both, how far they are apart, and what the rows say of it."""
    write, *_ = FORMS[each.measure.form]
    title = f"{each.measure.title}: "
    if each.first is None or each.second is None or each.value is None:
        return f"{title}{each.note}."
    values = f"{title}{write(each.first)} under A, {write(each.second)} under B"
    if each.note:
        return f"{values} ({each.note})."
    difference, span = _apart(each)
    test = f"; McNemar’s exact {words.p_value(each.found['p'])}" if each.found and "p" in each.found else ""
    counted = f"{words.number(each.n or 0)} rows"
    if each.found and "alone_right" in each.found:
        counted += (
            f", of which {words.number(each.found['alone_right'])} are right under B alone and "
            f"{words.number(each.found['other_alone_right'])} under A alone"
        )
    return f"{values}: a difference of {difference} (95% interval {span}{test}) over {counted}: {shown(each)}."


def shown(each: Difference) -> str:
    """What the rows show, in words."""
    return "too few rows to say" if each.few else SHOWN[each.tone]


def _nats(value: float) -> str:
    return words.number(float(value), 4)


def _signed_nats(value: float) -> str:
    return words.signed(value, 4)


# Of each form: how a figure is written, how a difference, and its unit.
FORMS: dict[str, tuple[Callable[[float], str], Callable[[float], str], str]] = {
    "share": (words.percent, words.points, " points"),
    "signed": (words.signed, words.signed, ""),
    "nats": (_nats, _signed_nats, " nats"),
}


def _apart(each: Difference) -> tuple[str, str]:
    """A difference and its interval in words; empty where there is none."""
    if each.value is None:
        return "", ""
    _, write, unit = FORMS[each.measure.form]
    span = f"{write(each.estimate.low)} to {write(each.estimate.high)}" if each.estimate else ""
    return f"{write(each.value)}{unit}", span


def table_rows(track: str, table: Sequence[Difference]) -> list[dict[str, Any]]:
    """The measures of a track as cells."""
    return [
        {
            "title": each.measure.title,
            "values": ["" if v is None else FORMS[each.measure.form][0](v) for v in (each.first, each.second)],
            "difference": _apart(each)[0],
            "span": _apart(each)[1],
            "p": words.p_value(each.found["p"]) if each.found and "p" in each.found else "",
            "n": each.n,
            "shown": each.note or shown(each),
        }
        for each in table
        if each.measure.track == track
    ]


def changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The keys whose values differ, in the order of the second, with both values; "absent" where one has no such key."""
    keys = [*second, *(key for key in first if key not in second)]
    shown = [[_value(each[key]) if key in each else "absent" for each in (first, second)] for key in keys]
    same = [key in first and key in second and first[key] == second[key] for key in keys]
    return [(key, a, b) for key, (a, b), equal in zip(keys, shown, same, strict=True) if not equal]


def _value(value: Any) -> str:
    """A parameter or a metric as it stands in its file, but for digits beyond the sixth."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def curves(track: Track, first: Run, second: Run) -> list[Panel]:
    """Both runs in one figure each: what either has of loss, margin and accuracy."""
    shown = {"Loss": "loss", "Reward margin": "rewards/margin", "Pairs ranked right": "rewards/accuracy"}
    shown |= {"Policy: accuracy": "accuracy"} if track == "image" else {}
    lines = [Line("A", "first", "A"), Line("B", "second", "B")]
    return [
        drawn
        for title, column in shown.items()
        for drawn in panel(
            overlaid(first, second, column),
            title,
            lines,
            f"{track}-{column.replace('/', '-')}",
            as_percent="acc" in column,
        )
    ]


def overlaid(first: Run, second: Run, column: str) -> Run:
    """A column of two runs by step, as the columns A and B; a run without it leaves its own empty."""

    def frame(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
        series = {
            name: each.set_index("step")[column] if column in each else pd.Series(dtype=float)
            for name, each in zip(NAMES, (one, other), strict=True)
        }
        return pd.concat(series, axis=1).rename_axis("step").sort_index().reset_index()

    return Run(frame(first.history, second.history), frame(first.validation, second.validation))


def examples(first: Experiment, second: Experiment, count: int) -> list[dict[str, Any]] | None:
    """Held-out pairs that one alone ranks right, in groups, those whose margin moved most first; None: not the same pairs."""
    columns = ["id", "reward_chosen", "reward_rejected", "margin"]
    one, other = (run.pairs[columns] for run in (first, second))
    if set(one["id"]) != set(other["id"]) or one["margin"].isna().any() or other["margin"].isna().any():
        return None
    rows = one.merge(other, on="id", suffixes=("_a", "_b"))
    right_a, right_b = rows["margin_a"] > 0, rows["margin_b"] > 0
    moved = (rows["margin_b"] - rows["margin_a"]).abs().sort_values(ascending=False, kind="stable").index
    groups = {"Ranked right by B alone": right_b & ~right_a, "Ranked right by A alone": right_a & ~right_b}
    found = {title: rows.loc[moved][mask.loc[moved]] for title, mask in groups.items()}
    filled = {title: group for title, group in found.items() if len(group)}
    if not filled:
        return []
    said = second.files.parquet("data/validated/pairs.parquet", ["id", "source", "prompt", "chosen", "rejected"])
    return [
        {
            "title": title,
            "total": len(group),
            "items": group.head(max(1, count // len(filled)) if count else 0).merge(said, on="id").to_dict("records"),
        }
        for title, group in filled.items()
    ]


def pictures(first: Experiment, second: Experiment, count: int) -> list[dict[str, Any]] | None:
    """Test images that the two policies take for different classes; None where the images are others."""
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
    titles = ("Right under B alone", "Right under A alone", "Wrong under both, in another way")
    return changes.pictures(rows, images, classes, NAMES, titles, count)


def render(first: Experiment, second: Experiment, table: Sequence[Difference]) -> str:
    """The page."""
    parameters = changed(first.params, second.params)
    return (
        environment(autoescape=True)
        .get_template("comparison.html.j2")
        .render(
            names=(first.name, second.name),
            revisions=(first.revision, second.revision),
            parameters=parameters,
            rescaled=any(key.split(".")[0] in ("beta", "loss", "loss_options") for key, *_ in parameters),
            verdicts={
                "Language model": verdict("text", table, first, second),
                "Image classifier": verdict("image", table, first, second),
            },
            text_rows=table_rows("text", table),
            image_rows=table_rows("image", table),
            text_curves=curves("text", first.text, second.text),
            image_curves=curves("image", first.image, second.image),
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
