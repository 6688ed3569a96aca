"""A project that `prefdag init` starts from the wheel gives the bytes that the repository gives, with another hash seed.

The model of the default run has the same bytes on every machine. Secrets in the environment are not written anywhere.
"""

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clones import Run, run_in, set_params

from prefdag.check_code import STAGE
from prefdag.runtime.dvc_files import read_lock
from prefdag.runtime.yaml import read_yaml

CANARY = "-".join(["canary", "5f1d", "7a0c3e"])  # no file contains it in one piece, not even this one
SECRETS = {
    "PREFDAG_JUDGE_KEY": CANARY,
    "HF_TOKEN": f"hf_{CANARY}",
    "AWS_SECRET_ACCESS_KEY": CANARY,
    "MLFLOW_TRACKING_PASSWORD": CANARY,
    # An address with a password and without a server: exceptions have it in their messages.
    "MLFLOW_TRACKING_URI": f"http://user:{CANARY}@127.0.0.1:9",
}


@pytest.fixture(scope="module")
def again(root: Path, tiny: Path, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A project started from the wheel, in which the tiny profile has run with secrets in the environment.

    uvx makes an environment of the wheel and the locked versions, as a user of the wheel does who has nothing installed.
    """

    def make(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        wheels = folder.with_name("wheels")
        shutil.rmtree(wheels, ignore_errors=True)
        run_in(root, sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels))
        (wheel,) = wheels.glob("*.whl")
        uvx = ["uvx", "--quiet", "--constraints", str(root / "requirements.lock"), "--from", str(wheel)]
        # Python compiles the modules that it imports; uv would compile all 26,000.
        environment = {**SECRETS, "PYTHONHASHSEED": "2", "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": ""}
        run_in(folder.parent, *uvx, "prefdag", "init", folder.name, "--profile", "tiny", **environment)
        set_params(folder, {"download_model.source": read_yaml(tiny / "params.yaml")["download_model"]["source"]})
        log = run_in(folder, *uvx, "dvc", "repro", **environment).stdout
        log += run_in(folder, *uvx, "prefdag", "sync", check=False, **environment).stdout
        (folder / "run.log").write_text(log)

    return once("again", make)


def outputs(folder: Path) -> dict[str, str]:
    """The hash of every output of every stage, from all dvc.lock; not those of the code, most of which a project leaves to the
    library."""
    stages = read_lock(folder / "dvc.lock")
    return {out["path"]: out["md5"] for name, stage in stages.items() if name != STAGE for out in stage.get("outs", [])}


def test_a_rebuild_has_the_same_bytes(tiny: Path, again: Path) -> None:
    assert len(outputs(again)) > 20
    assert outputs(again) == outputs(tiny)
    for folder in (tiny, again):  # the files match the lock
        assert "everything present matches dvc.lock" in run_in(folder, "prefdag", "verify").stdout


def test_the_model_of_the_default_run_has_the_committed_bytes(root: Path, tiny: Path) -> None:
    """Before the small model took its place: converted here, and where dvc.lock was committed."""
    here, committed = (
        read_lock(lock)["download_model"]["outs"] for lock in (tiny.with_name("own_model.lock"), root / "dvc.lock")
    )
    assert here == committed


def test_another_seed_has_other_bytes(tiny: Path, copy: Path, run: Run) -> None:
    """The comparison can fail."""
    set_params(copy, {"format_pairs.seed": 1})
    run("dvc", "repro", "format_pairs")
    assert {path for path, md5 in outputs(copy).items() if outputs(tiny)[path] != md5} >= {"data/pairs"}


def files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if not Path(parent, name).is_symlink())


def files_with(folder: Path, text: str) -> list[str]:
    """The files that contain a text."""
    return sorted(str(path.relative_to(folder)) for path in files(folder) if text.encode() in path.read_bytes())


def test_no_secret_is_in_a_file_a_message_or_mlflow(again: Path, tmp_path: Path) -> None:
    log = (again / "run.log").read_text()
    assert "MLflow at http://127.0.0.1:9" in log
    assert list((again / ".prefdag" / "spool").glob("pipeline-*/events.jsonl"))
    assert files_with(again, CANARY) == []
    # The search can fail.
    (again / "reports" / "leak.txt").write_text(f"key: {CANARY}")
    assert files_with(again, CANARY) == ["reports/leak.txt"]
    (again / "reports" / "leak.txt").unlink()
    # Send the runs that the dead server did not accept to a database.
    database = f"sqlite:///{tmp_path}/mlflow.db"
    run_in(again, "prefdag", "sync", **{**SECRETS, "MLFLOW_TRACKING_URI": database, "DVC_ROOT": str(again)})
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        assert connection.execute("select count(*) from runs").fetchone()[0] > 1
    assert files_with(tmp_path, CANARY) == files_with(again, CANARY) == []
