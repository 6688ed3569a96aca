"""`prefdag experiments`: `dvc exp show` with the columns that matter.

DVC has a column for every parameter and every dependency, some 400 here, and no setting for it but `--drop`. This leaves the
main metrics, β, loss and seed, and the parameters that differ between the experiments.
"""

import csv
import io
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

from prefdag.lifecycle.errors import PrefdagError

MOST = 40  # columns
FIXED = ("Experiment", "rev", "typ", "Created", "parent", "State", "Executor")  # DVC's own
MAIN_METRICS = re.compile(r"(text|image)\.")  # of reports/metrics.json
MAIN_PARAMS = ("beta", "loss", "seed")
HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")  # the value of a dependency
FORMATS = ("--csv", "--md", "--json")


def show(options: Sequence[str]) -> int:
    """Print the table, with the options of `dvc exp show`. Returns how many parameters that differ have no column.

    Raises:
        PrefdagError: DVC failed; it has printed why.
    """
    plain = [option for option in options if option not in FORMATS]
    rows = list(csv.DictReader(io.StringIO(_dvc(("--csv", *plain), read=True))))
    kept, left_out = columns(rows)
    _dvc((f"--drop=^(?!(?:{'|'.join(map(re.escape, kept))})$)", *options))
    return left_out


def columns(rows: Sequence[Mapping[str, str]]) -> tuple[list[str], int]:
    """The columns to show, at most `MOST`, and how many parameters that differ are not among them."""
    names = list(rows[0]) if rows else list(FIXED)
    shown = [name for name in names if name in (*FIXED, *MAIN_PARAMS) or MAIN_METRICS.match(name)]
    differing = [name for name in names if name not in shown and _differs(row[name] for row in rows)]
    room = max(0, MOST - len(shown))
    return [*shown, *differing[:room]], len(differing[room:])


def _differs(values: Iterable[str]) -> bool:
    """Whether a parameter differs between the experiments. A dependency does not count: its value is a hash."""
    different = set(values)
    return len(different) > 1 and not all(HASH.fullmatch(value) for value in different if value)


def _dvc(options: Iterable[str], read: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "show", *options], stdout=subprocess.PIPE if read else None, text=True
    )
    if done.returncode:
        raise PrefdagError("`dvc exp show` failed; its message is above")
    return done.stdout or ""
