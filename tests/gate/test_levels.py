"""Every measure of the registry has its own two levels: above `warn` it is listed, above `error` the stage stops."""

import re
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from prefdag.config.validate_pairs import MeasureName, PairLevels, ShareLevels, ValidatePairs
from prefdag.gate import measures
from prefdag.gate.measures import ALL, COLUMNS, MEASURES
from prefdag.lifecycle.errors import DataError
from stages import validate_pairs

LOW = 0.4  # the lower end of every measure's interval, which is what the levels are compared with
LEVELS = PairLevels(
    invalid="error",
    duplicate="warn",
    near_duplicate="warn",
    conflict="warn",
    encoding="warn",
    contamination="warn",
    score_order="warn",
)


@pytest.fixture
def _made_up_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One good pair in an empty project, where every measure is 0.5 with the interval 0.4 to 0.6. No Data Docs."""
    from prefdag.gate import checks

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    validate_pairs.RAW.mkdir(parents=True)
    (validate_pairs.RAW / "a.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}')
    shares = pd.DataFrame([(ALL, measure, 0.5, LOW, 0.6, 100) for measure in MEASURES], columns=COLUMNS)
    monkeypatch.setattr(measures, "measure_shares", lambda pairs: shares)
    monkeypatch.setattr(checks, "_data_docs", lambda context, folder: None)


def warnings(measure: MeasureName, warn: float | None, error: float | None) -> list[list[str]]:
    """Run the stage with levels for one measure only, and return the rows that it lists: source, column and level."""
    shares = dict.fromkeys(get_args(MeasureName), ShareLevels(warn=None, error=None))
    shares[measure] = ShareLevels(warn=warn, error=error)
    validate_pairs.main(
        ValidatePairs(
            format="plain",
            columns=None,
            score_scale=None,
            levels=LEVELS,
            shares=shares,
            similarity=0.8,
            max_dropped=0.0,
        )
    )
    listed = pd.read_csv(validate_pairs.REPORT / "offending.csv")
    return listed[["source", "column", "level"]].to_numpy().tolist()


@pytest.mark.slow
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.usefixtures("_made_up_shares")
def test_a_measure_above_warn_is_listed_and_above_error_stops(measure: MeasureName) -> None:
    assert warnings(measure, LOW - 0.01, LOW) == [[ALL, measure, "warn"]]  # and not above an error level of LOW
    assert validate_pairs.PAIRS.exists()
    validate_pairs.PAIRS.unlink()
    line = f"{ALL}:{measure}: above 0.39, validate_pairs.shares.{measure}.error: {MEASURES[measure].remedy}"
    with pytest.raises(DataError, match=f"^{re.escape(line)}"):
        warnings(measure, None, LOW - 0.01)
    assert not validate_pairs.PAIRS.exists()
