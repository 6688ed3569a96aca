"""The job script on a real Slurm cluster, as an ordinary user: one experiment on two nodes, and an array of experiments."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import slurm_cluster
from clones import ENVIRONMENT, stages_run

from prefdag.runtime.yaml import read_yaml

USER, ID = "nobody", "65534"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike those of pytest."""
    with TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_experiments_as_jobs(copy: Path, folder: Path) -> None:
    """Each runs one stage, in a clone of its own, and is then an experiment of the folder that it was submitted from."""
    jobs = folder / "jobs"
    jobs.mkdir()
    # What the copy shares with others stays root's, and is read only.
    for path in (jobs, copy, *copy.rglob("*")):
        if not path.is_symlink() and (path.is_dir() or path.stat().st_nlink == 1):
            os.chown(path, int(ID), int(ID))
    (copy / "sweep.txt").write_text("-S answer_text.seed=5\n-S answer_text.seed=6\n")
    with slurm_cluster.running(folder) as environment:
        environment |= ENVIRONMENT | {"PREFDAG_JOBS": str(jobs), "DVC_SITE_CACHE_DIR": str(jobs / "site")}
        environment |= {
            "PYTHONPATH": "",
            "HOME": str(jobs),
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@example.com",
        }
        environment |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.com"}

        def as_user(*command: str) -> str:
            user = ["setpriv", f"--reuid={ID}", f"--regid={ID}", "--clear-groups", *command]
            done = subprocess.run(user, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
            logs = "\n".join(path.read_text() for path in copy.glob("slurm-*.log"))
            assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{logs}"
            return logs if command[0] == "sbatch" else done.stdout

        job = ["sbatch", "--wait"]
        only = ["--single-item", "answer_text"]
        log = as_user(*job, "--nodes=2", "slurm/experiment.sh", "-S", "answer_text.seed=4", *only)
        assert stages_run(log) == ["answer_text"]
        as_user(*job, "--array=1-2", "slurm/experiment.sh", "@sweep.txt", *only)
        assert set(as_user("dvc", "exp", "list", "--name-only").split()) >= {"job-1", "job-2-1", "job-2-2"}
        before = (copy / "reports/text/answers.parquet").read_bytes()
        as_user("dvc", "exp", "apply", "job-2-2")
        assert read_yaml(copy / "params.yaml")["answer_text"]["seed"] == 6
        assert (copy / "reports/text/answers.parquet").read_bytes() != before
