"""A colleague gets results over a DVC remote on S3 and a Git server, and computes none of them again."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import buckets
import pytest
from buckets import Buckets
from clones import link_copy, run_in, stages_run

from prefdag.runtime.dvc_files import files, read_lock

LARGE = 10**8  # bytes
NOBODY = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # nothing listens there; the run waits in the spool
Clone = Callable[..., Path]


def large(folder: Path) -> dict[str, Path]:
    """The large files in a DVC cache by their place in it: the model of the profile, half a gigabyte."""
    cache = folder / ".dvc/cache"
    files = (path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > LARGE)
    return {path.relative_to(cache).as_posix(): path for path in files}


@pytest.fixture(scope="module")
def storage() -> Iterator[Buckets]:
    pytest.importorskip("moto")
    with buckets.serving() as server:
        server.s3.create_bucket(Bucket="dvc")
        yield server


@pytest.fixture(scope="module")
def mine(tiny: Path, storage: Buckets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the pipeline has run, pushed to a Git server and to S3.

    Large files would take a minute to and fro. An empty object stands for each, and a colleague has them from the start.
    """
    folder = tmp_path_factory.mktemp("team") / "mine"
    link_copy(tiny, folder)
    for name in large(folder):
        storage.s3.put_object(Bucket="dvc", Key=f"store/{name}", Body=b"")
    server = folder.with_name("server.git")
    run_in(folder, "git", "init", "--quiet", "--bare", "--initial-branch=main", str(server))
    run_in(folder, "git", "checkout", "--quiet", "-B", "main")
    run_in(folder, "git", "remote", "set-url", "origin", str(server))
    run_in(folder, "dvc", "remote", "add", "--default", "team", "s3://dvc/store")
    run_in(folder, "git", "commit", "--quiet", "--all", "--message", "The pipeline on the tiny profile, and a remote")
    run_in(folder, "git", "push", "--quiet", "--set-upstream", "origin", "main")
    run_in(folder, "dvc", "push", "--run-cache", **storage.environment)
    return folder


@pytest.fixture
def colleague(mine: Path, tmp_path: Path) -> Path:
    """A fresh clone whose cache has nothing but the large files."""
    folder = tmp_path / "colleague"
    run_in(tmp_path, "git", "clone", "--quiet", str(mine.with_name("server.git")), folder.name)
    for name, path in large(mine).items():
        (folder / ".dvc/cache" / name).parent.mkdir(parents=True)
        os.link(path, folder / ".dvc/cache" / name)
    return folder


def test_only_publish_runs_where_all_results_come_from_the_run_cache(storage: Buckets, colleague: Path) -> None:
    """As for parameters that somebody else has tried, whose dvc.lock is not in this branch."""
    lock, metrics = colleague / "dvc.lock", colleague / "reports/metrics.json"
    before = read_lock(lock), metrics.read_bytes()
    for file in (*files(lock), metrics):
        file.unlink()
    environment = storage.environment | NOBODY
    assert stages_run(run_in(colleague, "dvc", "repro", "--pull", **environment).stdout) == ["publish"]
    assert (read_lock(lock), metrics.read_bytes()) == before


def test_a_colleague_computes_nothing_again(storage: Buckets, mine: Path, colleague: Path) -> None:
    """The results whose dvc.lock is in Git, and then an experiment."""

    def same_files() -> None:
        for name in ("params.yaml", "dvc.lock", "reports/metrics.json", "reports/index.html"):
            assert (colleague / name).read_bytes() == (mine / name).read_bytes()
        # A `dvc repro` without --pull would send the run to the colleague's MLflow.
        status = run_in(colleague, "dvc", "status").stdout
        assert status.split() == ["publish:", "changed", "outs:", "deleted:", "reports/published.txt"]

    assert stages_run(run_in(colleague, "dvc", "repro", "--pull", **storage.environment).stdout) == []
    assert run_in(colleague, "git", "status", "--porcelain").stdout == ""
    same_files()

    value = "report.image_examples=3"
    ran = stages_run(run_in(mine, "dvc", "exp", "run", "--name", "few", "--set-param", value, **NOBODY).stdout)
    assert ran == ["report", "publish"]
    run_in(mine, "dvc", "exp", "push", "origin", "few", **storage.environment)
    assert "few" in run_in(colleague, "dvc", "exp", "list", "origin").stdout
    run_in(colleague, "dvc", "exp", "pull", "origin", "few", **storage.environment)
    run_in(colleague, "dvc", "exp", "apply", "few")
    assert "image_examples: 3" in (colleague / "params.yaml").read_text()
    same_files()
