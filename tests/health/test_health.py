"""The verdict on a run: each finding is made where its numbers require it, and not in a slightly better run."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefdag.config.health import FindingName, Health, ImageHealth, RoundsFinding, TrainingFinding
from prefdag.health import verdict as verdict_
from prefdag.health.findings import examine
from prefdag.health.verdict import Finding, Verdict
from prefdag.lifecycle.errors import NumericError
from prefdag.runtime.artifacts import write_json

CONFIG = Health(kl_budget=10.0, fail_on=[])
NAMES = get_args(TrainingFinding)
STEPS = 8
Columns = dict[str, list[float]]

# A good run: eight steps, three validations.
HISTORY: Columns = {
    "loss": [0.7, 0.7, 0.7, 0.6, 0.7, 0.5, 0.7, 0.5],  # varies by 0.1 over the last half
    "grad_norm": [1.0] * STEPS,
    "gradient/zero": [0.0] * STEPS,
    # Half of the chosen responses are longer and gain more; but shorter ones gain as well if they are chosen.
    "rewards/longer": [0.4] * STEPS,
    "rewards/margin": [0.5] * STEPS,
    "lengths/longer": [0.0] * STEPS,
}
VALIDATION: Columns = {
    "loss": [0.69, 0.65, 0.6],
    "gradient/zero": [0.0, 0.0, 0.5],
    "logps/chosen": [-80.0, -79.0, -79.5],
    "logps/rejected": [-90.0, -91.0, -92.0],
    "rewards/saturated": [0.0, 0.2, 0.5],
    "rewards/longer": [0.0, 0.2, 0.4],
    "rewards/margin": [0.0, 0.3, 0.5],
    "lengths/longer": [0.0, 0.0, 0.0],
    "kl": [0.0, 2.0, 10.0],
    "logratios/square": [0.0, 4.0, 20.0],
    "drift/reference": [0.0, 0.0, 0.0],
    "drift/buffers": [0.0, 0.0, 0.0],
}


def frame(columns: Columns) -> pd.DataFrame:
    return pd.DataFrame({"step": range(len(next(iter(columns.values())))), **columns})


def judged(history: Columns | None = None, validation: Columns | None = None) -> Verdict:
    """The verdict on the good run with some columns replaced; the start tolerance is 0.1 nats."""
    return examine(
        frame(HISTORY | (history or {})), frame(VALIDATION | (validation or {})), CONFIG, start_tolerance=0.1
    )


def names_in(verdict: Verdict) -> list[str]:
    return [finding.name for finding in verdict.findings]


def test_good_run_has_no_finding_in_any_check() -> None:
    """Several of its numbers are exactly at a threshold, which does not exceed it."""
    assert judged() == Verdict([], list(NAMES), [])


# A finding; columns of history and validation that cause it; slightly better ones that do not; a pattern of its sentence.
CASES: list[tuple[str, Columns, Columns, Columns, Columns, str]] = [
    (
        # sqrt(0.0102) = 0.101; sqrt(0.0098) = 0.099
        "not_at_reference",
        {},
        {"logratios/square": [0.0102, 2, 2]},
        {},
        {"logratios/square": [0.0098, 2, 2]},
        "off by 0.101 nats; the tolerance is 0.1$",
    ),
    ("zero_gradient", {}, {"gradient/zero": [0.04, 0, 0]}, {}, {"gradient/zero": [0, 0.04, 0]}, "step 0.* 4% of"),
    ("zero_gradient", {"gradient/zero": [0.125] + [0] * 7}, {}, {"gradient/zero": [0, 0.125] + [0] * 6}, {}, "12.5%"),
    ("zero_gradient", {}, {"gradient/zero": [0, 0, 0.51]}, {}, {"gradient/zero": [0, 0.51, 0.49]}, "end, 51%"),
    (
        "likelihood_displacement",
        {},
        {"logps/chosen": [-80.0, -70.0, -80.5]},
        {},
        {"logps/chosen": [-80.0, -85.0, -80.005]},  # it fell on the way, but in the end by less than 1%
        "from -80.00 to -80.50 nats, .* from -90.00 to -92.00 nats",
    ),
    (
        "likelihood_displacement",
        {},
        {"logps/chosen": [-80.0, -80.0, -81.0], "logps/rejected": [-90.0, -90.0, -90.1]},
        {},
        {"logps/chosen": [-80.0, -80.0, -81.0], "logps/rejected": [-90.0, -90.0, -89.9]},
        "-81.00 nats, .* -90.10",
    ),
    (
        # Half of the chosen responses are longer, with margin 1.2, the shorter ones with -0.2: the mean margin is
        # (1.2 - 0.2) / 2 = 0.5, and the longer response gains (1.2 + 0.2) / 2 = 0.7. With 1.0 and 0.0, both are 0.5.
        "length_exploitation",
        {},
        {"rewards/longer": [0.0, 0.2, 0.7]},
        {},
        {"rewards/longer": [0.0, 0.2, 0.5]},
        r"\+0.700 more .* explain \+0.000 of .* \+0.500",
    ),
    (
        # Nine of ten chosen responses are longer: lengths/longer is 0.9 - 0.1 = 0.8. Margins 1 and -1 depend on length only:
        # mean 0.8, the longer response gains 1, and 0.8 * 0.8 = 0.64 is explained. Margins 0.8 and 0.8: it gains 0.64.
        "length_exploitation",
        {},
        {"rewards/longer": [0, 0, 1.0], "rewards/margin": [0, 0, 0.8], "lengths/longer": [0.8] * 3},
        {},
        {"rewards/longer": [0, 0, 0.64], "rewards/margin": [0, 0, 0.8], "lengths/longer": [0.8] * 3},
        r"\+1.000 more .* explain \+0.640 of .* \+0.800",
    ),
    (
        # A policy that learned the opposite; three of four chosen responses are longer: 0.5 * -0.4 = -0.2 is explained.
        "length_exploitation",
        {},
        {"rewards/longer": [0, 0, -0.1], "rewards/margin": [0, 0, -0.4], "lengths/longer": [0.5] * 3},
        {},
        {"rewards/longer": [0, 0, -0.3], "rewards/margin": [0, 0, -0.4], "lengths/longer": [0.5] * 3},
        r"-0.100 more .* explain -0.200 of .* -0.400",
    ),
    ("reward_saturation", {}, {"rewards/saturated": [0, 0, 0.51]}, {}, {"rewards/saturated": [0, 0.9, 0.5]}, "51%"),
    ("kl_out_of_budget", {}, {"kl": [0, 1, 10.1]}, {}, {"kl": [0, 11.0, 9.9]}, "is 10.1 nats .* budget is 10$"),
    ("drift", {}, {"drift/buffers": [0, 1e-9, 0]}, {}, {"drift/buffers": [0, 0, 0]}, "drift/buffers is 1e-09, not 0"),
    ("divergence", {}, {"loss": [0.69, 0.5, 0.8]}, {}, {"loss": [0.69, 0.9, 0.78]}, "0.800, .* 0.690 .* the 0.100"),
    ("divergence", {"grad_norm": [1.0] * 7 + [101]}, {}, {"grad_norm": [1.0] * 7 + [99]}, {}, "reached 101; .* 1$"),
    (
        "divergence",
        {"grad_norm": [1.0] * 7 + [np.inf]},
        {},
        {"grad_norm": [0.0] * 7 + [1]},
        {},
        "finite: gradient norm",
    ),
    ("divergence", {}, {"loss": [0.69, np.nan, 0.6]}, {}, {}, "not finite: validation loss"),
]


@pytest.mark.parametrize(
    ("name", "history", "validation", "near_history", "near_validation", "pattern"),
    CASES,
    ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)],
)
def test_each_finding_is_made_alone_and_not_in_a_slightly_better_run(
    name: str, history: Columns, validation: Columns, near_history: Columns, near_validation: Columns, pattern: str
) -> None:
    verdict = judged(history, validation)
    assert names_in(verdict) == [name]
    assert re.search(pattern, verdict.findings[0].sentence)
    assert names_in(judged(near_history, near_validation)) == []


def test_every_finding_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(NAMES)


def test_length_finding_needs_more_than_a_few_validation_pairs() -> None:
    """In the last four steps the excess is 0.6, -0.4, 0.6 and -0.4: its mean of 0.1 is small compared to its spread."""
    unlucky: Columns = {"rewards/longer": [0.0, 0.2, 0.7]}
    assert names_in(judged({"rewards/longer": [0.6, -0.4] * 4}, unlucky)) == []
    assert names_in(judged({"rewards/longer": [0.6, 0.5] * 4}, unlucky)) == ["length_exploitation"]
    # If three of four chosen responses are longer, 0.5 * 0.5 = 0.25 is explained: a gain of 0.25 is no finding, 0.3 is.
    explained: Columns = {"rewards/longer": [0.25] * STEPS, "lengths/longer": [0.5] * STEPS}
    assert names_in(judged(explained, unlucky)) == []
    assert names_in(judged(explained | {"rewards/longer": [0.3] * STEPS}, unlucky)) == ["length_exploitation"]
    # Batches that differ only in their lengths do not hide an excess of 0.05 in each.
    mixed: Columns = {"rewards/longer": [0.55, -0.45] * 4, "lengths/longer": [1.0, -1.0] * 4}
    assert names_in(judged(mixed, unlucky)) == ["length_exploitation"]
    # Steps before the last half are no evidence, and neither is a single step.
    assert names_in(judged({"rewards/longer": [5.0] * 4 + [0.0] * 4}, unlucky)) == []
    single = {name: values[-1:] for name, values in HISTORY.items()}
    assert "length_exploitation" not in names_in(
        examine(frame(single), frame(VALIDATION | unlucky), CONFIG, start_tolerance=0.1)
    )


margins = st.lists(st.floats(-3, 3), min_size=1, max_size=6)


def length_columns(margin: list[float], sign: list[int], steps: int) -> Columns:
    m, s = np.array(margin), np.array(sign)
    return {
        "rewards/longer": [float((m * s).mean())] * steps,
        "rewards/margin": [float(m.mean())] * steps,
        "lengths/longer": [float(s.mean())] * steps,
    }


@pytest.mark.slow
@given(margins, st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=6))
def test_policy_indifferent_to_length_has_no_length_finding(margin: list[float], sign: list[int]) -> None:
    """Every margin is combined with every sign, so they are independent, whatever share of chosen responses is longer."""
    columns = length_columns([m for m in margin for _ in sign], sign * len(margin), STEPS)
    assert columns["rewards/longer"][0] == pytest.approx(np.mean(sign) * np.mean(margin), abs=1e-12)
    columns["rewards/longer"] = [v - 1e-9 for v in columns["rewards/longer"]]  # an excess by rounding is no excess
    assert names_in(judged(columns, {name: values[:3] for name, values in columns.items()})) == []


@pytest.mark.slow
@given(margins, margins)
def test_length_is_exploited_exactly_if_shorter_chosen_responses_lose(
    longer: list[float], shorter: list[float]
) -> None:
    """As the docstring claims for pairs of unequal lengths, whatever their shares, in runs that learned something.

    `longer`: the margins of the pairs whose longer response was chosen; `shorter`: those of the others.
    """
    assume(np.mean(longer + shorter) > 1e-6)
    assume(abs(np.mean(shorter)) > 1e-6)
    columns = length_columns(longer + shorter, [1] * len(longer) + [-1] * len(shorter), STEPS)
    verdict = judged(columns, {name: values[:3] for name, values in columns.items()})
    assert names_in(verdict) == (["length_exploitation"] if np.mean(shorter) < 0 else [])


@pytest.mark.parametrize(
    ("column", "missing"),
    [
        ("kl", ["kl_out_of_budget"]),
        ("logratios/square", ["not_at_reference"]),
        ("gradient/zero", ["zero_gradient"]),
        ("lengths/longer", ["length_exploitation"]),
        ("logps/chosen", ["likelihood_displacement"]),
        ("rewards/saturated", ["reward_saturation"]),
        ("drift/reference", []),  # the other one is still checked
        ("drift/", ["drift"]),
        ("grad_norm", ["divergence"]),
    ],
)
def test_findings_without_their_columns_are_listed_as_not_checked(column: str, missing: list[FindingName]) -> None:
    def without(columns: Columns) -> pd.DataFrame:
        kept = {name: v for name, v in columns.items() if name != column and not (column[-1] == "/" and column in name)}
        return frame(kept)

    verdict = examine(without(HISTORY), without(VALIDATION), CONFIG, start_tolerance=0.1)
    assert verdict == Verdict([], [name for name in NAMES if name not in missing], missing)


def test_the_start_is_not_checked_without_a_tolerance() -> None:
    away = frame(VALIDATION | {"logratios/square": [6.0, 4.0, 2.0]})
    verdict = examine(frame(HISTORY), away, CONFIG, start_tolerance=None)
    assert verdict == Verdict([], list(NAMES[1:]), ["not_at_reference"])


def test_length_is_not_checked_where_all_responses_are_equally_long() -> None:
    """A classifier's responses have one token each; to report their lengths as checked would mean nothing."""
    equal: Columns = {"rewards/longer": [0.0] * STEPS}
    verdict = judged(equal, {"rewards/longer": [0.0] * 3})
    assert verdict.findings == []
    assert verdict.not_checked == ["length_exploitation"]


def test_run_of_one_step_and_one_validation_is_judged() -> None:
    history, validation = (
        frame({name: values[:1] for name, values in columns.items()}) for columns in (HISTORY, VALIDATION)
    )
    assert names_in(examine(history, validation, CONFIG, start_tolerance=0.1)) == []


def test_fail_on_raises_one_line_with_those_findings_alone() -> None:
    verdict = judged({}, {"kl": [0.0, 1.0, 12.5], "rewards/saturated": [0.0, 0.0, 0.9], "loss": [0.69, 0.7, 0.9]})
    names: list[FindingName] = ["divergence", "kl_out_of_budget", "drift"]
    with pytest.raises(NumericError) as error:
        verdict_.raise_if_fatal(verdict, Health(kl_budget=10.0, fail_on=names), "params.yaml: health_text")
    message = str(error.value)
    assert message.startswith(
        "params.yaml: health_text.fail_on: kl_out_of_budget: at the end, the KL to the reference is 12.5 nats"
    )
    assert "; divergence: the validation loss" in message
    assert "reward_saturation" not in message
    assert "\n" not in message
    verdict_.raise_if_fatal(verdict, Health(kl_budget=10.0, fail_on=["drift"]), "")
    verdict_.raise_if_fatal(verdict, CONFIG, "")


def test_metrics_count_the_findings_of_all_checks() -> None:
    verdict = Verdict([Finding("drift", "moved")], ["drift", "divergence"], ["zero_gradient"])
    assert verdict_.metrics(verdict) == {"findings": 1, "drift": 1, "divergence": 0}


def test_verdict_is_the_same_from_its_file(tmp_path: Path) -> None:
    """Even if a value is not finite: JSON has no NaN, but the sentence has."""
    verdict = judged(
        {"grad_norm": [float("nan")] * STEPS}, {"kl": [float("nan")] * 3, "logratios/square": [float("nan")] * 3}
    )
    assert names_in(verdict) == ["not_at_reference", "kl_out_of_budget", "divergence"]
    write_json(tmp_path / "health.json", verdict_.to_json(verdict))
    assert verdict_.read(tmp_path / "health.json") == verdict


@pytest.mark.slow
def test_torch_is_not_imported() -> None:
    code = "import sys, prefdag.health.findings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_docs_list_the_findings_in_their_order(root: Path) -> None:
    rows = re.findall(r"^\| (\w+) \| .* \| .* \|$", (root / "docs" / "health.md").read_text("utf-8"), re.MULTILINE)
    assert [name for name in rows if name != "finding"] == [*NAMES, *get_args(RoundsFinding)]


def test_images_have_no_findings_on_rounds() -> None:
    """So a stop on one would never come."""
    assert ImageHealth(kl_budget=1.0, fail_on=["drift"]).fail_on == ["drift"]
    with pytest.raises(
        ValidationError, match="length_drift is a finding on rounds, which images do not have; remove it"
    ):
        ImageHealth(kl_budget=1.0, fail_on=["drift", "length_drift"])
