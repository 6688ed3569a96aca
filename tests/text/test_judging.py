"""Several judges, asked by several processes."""

from typing import Any

import pandas as pd
import pytest

from prefdag.config.judges import ImplicitJudge, Judge
from prefdag.config.verify import JsonCheck, VerifyJudge
from prefdag.text.evaluation import judging

PROGRAM = VerifyJudge(kind="verify", checks=[JsonCheck(kind="json")])
JUDGES: dict[str, Judge] = {"judge": PROGRAM, "stopping_judge": ImplicitJudge(kind="implicit")}


def asked(monkeypatch: pytest.MonkeyPatch, rank: str) -> tuple[Any, list[str]]:
    """The verdicts, and the judges that a process asked, in order."""
    found: list[str] = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(judging, "verdicts", lambda config, pairs, needs, where: found.append(where))
    anything: Any = None
    return judging.all_verdicts(JUDGES, pd.DataFrame(), anything, "rounds"), found


def test_verdicts_are_in_the_order_of_the_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they are asked in: the table of rounds subtracts the second one's win rate from the first one's."""
    verdicts, found = asked(monkeypatch, "0")
    assert list(verdicts) == ["judge", "stopping_judge"]
    assert found == ["rounds.stopping_judge", "rounds.judge"]


def test_of_the_other_processes_only_shared_judges_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, "1") == (None, ["rounds.stopping_judge"])
