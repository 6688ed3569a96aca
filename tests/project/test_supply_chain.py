"""Only locked packages are installed: every package has a hash, and a mismatch is refused."""

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_with_hashes(root: Path, name: str) -> None:
    packages = re.split(r"\n(?=\S)", (root / name).read_text().replace("\\\n", " ").strip())
    assert packages
    for package in packages:
        assert re.fullmatch(r"[\w.-]+==\S+( +;[^#]*?)?( +--hash=sha256:[0-9a-f]{64})+", package), package


def test_every_installation_requires_hashes(root: Path) -> None:
    lines = (root / "Makefile").read_text().replace("\\\n", " ").splitlines()
    commands = [part for line in lines for part in line.split("&&") if "pip install" in part]
    assert len(commands) == 4
    ours = [part for part in commands if "--require-hashes" not in part]
    assert len(ours) == 1
    assert ours[0].split()[-2:] == ["--editable", "."]
    assert "--no-deps --no-build-isolation" in ours[0]


def test_what_comes_beside_the_lock_moves_nothing_in_it(root: Path) -> None:
    def names(lock: str) -> set[str]:
        return set(re.findall(r"^([\w.-]+)==", (root / lock).read_text(), re.MULTILINE))

    main, s3, test = map(names, ("requirements.lock", "requirements-s3.lock", "requirements-test.lock"))
    assert "dvc-s3" in s3
    assert "moto" in test
    assert not s3 & main
    assert not test & (main | s3)


def test_the_server_of_a_team_has_the_versions_that_are_tested(root: Path) -> None:
    def versions(lock: str) -> dict[str, str]:
        return dict(re.findall(r"^([\w.-]+)==(\S+)", (root / lock).read_text(), re.MULTILINE))

    server = versions("requirements-server.lock")
    tested = versions("requirements.lock") | versions("requirements-s3.lock") | versions("requirements-test.lock")
    assert {"mlflow", "flask-wtf", "psycopg", "boto3"} <= server.keys()
    assert {name: tested.get(name) for name in server} == server


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "wheels" / "canary-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("canary.py", "")
        archive.writestr("canary-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: canary\nVersion: 1.0\n")
        archive.writestr("canary-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("canary-1.0.dist-info/RECORD", "")
    return path


@pytest.mark.parametrize("tampered", ["", "lock", "wheel"])
def test_a_tampered_hash_or_wheel_is_refused(wheel: Path, tmp_path: Path, tampered: str) -> None:
    """Without tampering the package is installed."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if tampered == "lock":
        digest = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    if tampered == "wheel":
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr("worse.py", "")
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"canary==1.0 \\\n    --hash=sha256:{digest}\n")
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "pip", "install", "--no-cache", "--offline", "--no-index", "--find-links", wheel.parent]
    target = tmp_path / "installed"
    done = subprocess.run(
        [*command, "--python", sys.executable, "--target", target, "--require-hashes", "-r", lock],
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == (target / "canary.py").exists() == (not tampered), done.stderr
    if tampered:
        assert "Hash mismatch" in done.stderr
