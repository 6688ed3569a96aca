"""The verdict on a finished DPO run: its findings, and which ones were checked. Imports no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdag.lifecycle.errors import NumericError
from prefdag.runtime.artifacts import read_json

if TYPE_CHECKING:
    from prefdag.config.health import FindingName, Health


@dataclass(frozen=True)
class Finding:
    """Something wrong with a run, with its numbers, in one sentence."""

    name: "FindingName"
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The findings of a run, in the order of `FindingName`, and which were and were not checked."""

    findings: Sequence[Finding]
    checked: Sequence["FindingName"]
    not_checked: Sequence["FindingName"]


def joined(first: Verdict, second: Verdict) -> Verdict:
    """Both verdicts as one."""
    return Verdict(
        [*first.findings, *second.findings],
        [*first.checked, *second.checked],
        [*first.not_checked, *second.not_checked],
    )


def raise_if_fatal(verdict: Verdict, config: "Health", key: str) -> None:
    """Raises `NumericError` if a finding is in `config.fail_on`; `key` is where `config` is in params.yaml."""
    fatal = [finding for finding in verdict.findings if finding.name in config.fail_on]
    if fatal:
        sentences = "; ".join(f"{finding.name}: {finding.sentence}" for finding in fatal)
        raise NumericError(f"{key}.fail_on: {sentences}; see docs/health.md")


def metrics(verdict: Verdict) -> dict[str, int]:
    """The number of findings, and 1 or 0 for each one that was checked."""
    names = {finding.name for finding in verdict.findings}
    return {"findings": len(names), **{name: int(name in names) for name in verdict.checked}}


def to_json(verdict: Verdict) -> dict[str, Any]:
    """The content of health.json."""
    return asdict(verdict)


def read(path: Path) -> Verdict:
    """The verdict in health.json. Raises `DataError` if the file is missing or not JSON."""
    tree = read_json(path)
    return Verdict([Finding(**finding) for finding in tree["findings"]], tree["checked"], tree["not_checked"])
