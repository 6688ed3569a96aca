"""Sources on S3, from moto's server, which checks signatures: with dvc-s3 as requirements-s3.lock pins it."""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import buckets
import pytest
import refused_sources
from buckets import Buckets
from paths import ROOT
from refused_sources import KEY

from prefdag.config.sources import DvcSource, UrlSource
from prefdag.project.pinning import pins
from prefdag.sources.fetching import fetch

pytestmark = pytest.mark.slow

ROWS = b'{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n' * 4000
DIGEST = hashlib.sha256(ROWS).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[Buckets]:
    pytest.importorskip("moto")
    with buckets.serving() as server:
        server.s3.create_bucket(Bucket="mine")
        yield server


@pytest.fixture
def bucket(
    server: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Buckets]:
    """The bucket `mine` with rows.jsonl, and credentials in the environment, which no line of the log may show."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):  # not this machine's
        (tmp_path / name).touch()
        monkeypatch.setenv(name, str(tmp_path / name))
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.s3.put_object(Bucket="mine", Key="a/rows.jsonl", Body=ROWS)
    caplog.set_level(logging.INFO)
    yield server
    messages = " ".join(record.getMessage() for record in caplog.records)
    assert server.key not in messages
    assert server.secret not in messages


def at(url: str, sha256: str | None = DIGEST) -> UrlSource:
    return UrlSource(kind="url", url=url, sha256=sha256)


def refusal(bucket: Buckets, source: Any, out: Path) -> str:
    """Never with credentials."""
    message = refused_sources.refusal(source, out)
    assert bucket.key not in message
    assert bucket.secret not in message
    return message


def test_an_object_by_its_hash(bucket: Buckets, tmp_path: Path) -> None:
    fetch(at("s3://mine/a/rows.jsonl"), tmp_path / "out", KEY)
    assert (tmp_path / "out/rows.jsonl").read_bytes() == ROWS
    assert pins(at("s3://mine/a/rows.jsonl", None)) == {"sha256": DIGEST}
    bucket.s3.put_object(Bucket="mine", Key="a/rows.jsonl", Body=ROWS + b"\n")
    other = hashlib.sha256(ROWS + b"\n").hexdigest()
    message = refusal(bucket, at("s3://mine/a/rows.jsonl"), tmp_path / "again")
    assert f"sha256 is {DIGEST}, but 'rows.jsonl' has sha256: {other}; write that if the change" in message


def test_an_object_that_comes_in_parts(bucket: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 2**16)
    fetch(at("s3://mine/a/rows.jsonl"), tmp_path / "out", KEY)
    assert (tmp_path / "out/rows.jsonl").read_bytes() == ROWS


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://none/a/rows.jsonl", "'s3://none/a/rows.jsonl': there is no such bucket; check the address"),
        ("s3://mine/a/row.jsonl", "'s3://mine/a/row.jsonl' is not there; check the address"),
        ("s3://mine/a", "'s3://mine/a' is a folder; name one file, such as a .tar of the folder"),
        ("s3://mine", "'s3://mine' does not end with the name of a file; append one, as in s3://mine#rows.jsonl"),
        ("s3://Not_A_Bucket!/rows.jsonl", "Invalid bucket name"),
    ],
)
def test_what_is_not_there(url: str, says: str, bucket: Buckets, tmp_path: Path) -> None:
    assert says in refusal(bucket, at(url), tmp_path / "out")


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "permission denied; check the credentials of this machine"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "permission denied; check the credentials of this machine"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "missing: AWS_SECRET_ACCESS_KEY"),
        (
            {"AWS_SECRET_ACCESS_KEY": None, "AWS_ACCESS_KEY_ID": None},
            "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        ),
        ({"AWS_PROFILE": "nobody"}, "profile (nobody) could not be found"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the server cannot be reached; check the address and the network"),
    ],
)
def test_credentials_and_servers_that_do_not_work(
    variables: dict[str, str | None], says: str, bucket: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name, value in variables.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    message = refusal(bucket, at("s3://mine/a/rows.jsonl"), tmp_path / "out")
    assert message.startswith(f"params.yaml: {KEY}: 's3://mine/a/rows.jsonl'")
    assert says in message


def test_the_stage_writes_and_prints_no_credentials(bucket: Buckets, tmp_path: Path) -> None:
    params = (ROOT / "params.yaml").read_text("utf-8")
    start = params.index("download_pairs:\n  source:")
    source = f"\n    kind: url\n    url: s3://mine/a/rows.jsonl\n    sha256: {DIGEST}"
    text = f"{params[:start]}download_pairs:\n  source:{source}{params[params.index(chr(10) * 2, start) :]}"
    (tmp_path / "params.yaml").write_text(text, "utf-8")
    for secret, code in ((bucket.secret, 0), ("wrong-" + bucket.secret, 2)):
        done = subprocess.run(
            [sys.executable, "-m", "stages.download_pairs"],
            cwd=tmp_path,
            env=os.environ | {"AWS_SECRET_ACCESS_KEY": secret, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        for text in (done.stdout.encode(), done.stderr.encode(), *written):
            assert bucket.secret.encode() not in text
            assert bucket.key.encode() not in text
    assert (tmp_path / "data/raw/pairs/rows.jsonl").read_bytes() == ROWS


def run(*command: str, cwd: Path) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def test_a_dvc_project_whose_storage_is_on_s3(
    bucket: Buckets, tmp_path: Path, own_git: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "rows.jsonl").write_bytes(ROWS)
    for command in (
        "git init -q",
        "dvc init -q",
        "dvc remote add -d store s3://mine/store",
        "dvc add -q rows.jsonl",
        "dvc push -q",
        "git add .",
        "git commit -q -m first",
    ):
        run(*command.split(), cwd=other)
    shutil.rmtree(other / ".dvc/cache")
    source = DvcSource(
        kind="dvc", repo=str(other), path="rows.jsonl", revision=run("git", "rev-parse", "HEAD", cwd=other)
    )
    fetch(source, tmp_path / "out", KEY)
    assert (tmp_path / "out/rows.jsonl").read_bytes() == ROWS
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    message = refusal(bucket, source, tmp_path / "again")
    assert message.endswith("cannot be fetched: permission denied; check the credentials of this machine")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    message = refusal(bucket, source, tmp_path / "again")
    assert message.endswith("no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")


def test_a_file_on_a_remote_of_dvc(bucket: Buckets, tmp_path: Path, own_git: None) -> None:
    for command in ("git init -q", "dvc init -q", "dvc remote add store s3://mine/a"):
        run(*command.split(), cwd=tmp_path)
    fetch(at("remote://store/rows.jsonl"), tmp_path / "out", KEY)
    assert (tmp_path / "out/rows.jsonl").read_bytes() == ROWS
