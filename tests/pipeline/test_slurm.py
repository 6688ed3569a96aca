"""A real Slurm cluster, for an ordinary user: every stage on two nodes, the job script, and an array of experiments."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import slurm_cluster
from clones import ENVIRONMENT, stages_run
from every_stage import too_far
from team_server import free_port

from prefdag.runtime.yaml import read_yaml

USER, ID = "nobody", "65534"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike those of pytest."""
    with TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


JOB = """\
#!/bin/sh
srun --ntasks-per-node 1 torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint $(hostname):{port} \\
    --rdzv-id $SLURM_JOB_ID tests/pipeline/every_stage.py {results}
"""


def give(*folders: Path) -> None:
    """Make the user the owner. What a folder shares with others by hard links stays root's, and is read only."""
    for path in (path for folder in folders for path in (folder, *folder.rglob("*"))):
        if not path.is_symlink() and (path.is_dir() or path.stat().st_nlink == 1):
            os.chown(path, int(ID), int(ID))


def as_user(*command: str, cwd: Path, environment: dict[str, str]) -> str:
    """Run a command; returns what it prints, or of a job, its log."""
    user = ["setpriv", f"--reuid={ID}", f"--regid={ID}", "--clear-groups", *command]
    done = subprocess.run(user, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    logs = "\n".join(path.read_text() for path in cwd.glob("slurm-*"))
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{logs}"
    return logs if command[0] == "sbatch" else done.stdout


def test_every_stage_on_two_nodes(small: Path, folder: Path) -> None:
    project, results = folder / "project", folder / "results"
    shutil.copytree(small, project, symlinks=True)
    results.mkdir()
    (project / "job.sh").write_text(JOB.format(port=free_port(), results=results))
    give(project, results)
    with slurm_cluster.running(folder) as environment:
        environment |= ENVIRONMENT | {"PYTHONPATH": str(project), "HOME": str(project)}
        as_user("sbatch", "--wait", "--nodes=2", "job.sh", cwd=project, environment=environment)
    assert too_far(results, small) == {}


def test_experiments_as_jobs(copy: Path, folder: Path) -> None:
    """Each runs one stage, in a clone of its own, and is then an experiment of the folder that it was submitted from."""
    jobs = folder / "jobs"
    jobs.mkdir()
    give(jobs, copy)
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
        run = partial(as_user, cwd=copy, environment=environment)
        job = ["sbatch", "--wait"]
        only = ["--single-item", "dag/evaluation/dvc.yaml:ref_answers"]
        log = run(*job, "--nodes=2", "slurm/experiment.sh", "-S", "answer_text.seed=4", *only)
        assert stages_run(log) == ["ref_answers"]
        run(*job, "--array=1-2", "slurm/experiment.sh", "@sweep.txt", *only)
        assert set(run("dvc", "exp", "list", "--name-only").split()) >= {"job-1", "job-2-1", "job-2-2"}
        before = (copy / "data/ref_answers/answers.parquet").read_bytes()
        run("dvc", "exp", "apply", "job-2-2")
        assert read_yaml(copy / "params.yaml")["answer_text"]["seed"] == 6
        assert (copy / "data/ref_answers/answers.parquet").read_bytes() != before


@pytest.mark.parametrize(
    ("task", "line"),
    [({}, "a file of experiments needs --array"), ({"SLURM_ARRAY_TASK_ID": "3"}, "error: sweep.txt has no line 3")],
)
def test_a_job_without_a_line_of_its_sweep_ends(tmp_path: Path, root: Path, task: dict[str, str], line: str) -> None:
    (tmp_path / "sweep.txt").write_text("-S beta=0.1\n-S beta=0.2\n")
    environment = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", **task}
    command = ["bash", str(root / "slurm/experiment.sh"), "@sweep.txt"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert line in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.txt"]
