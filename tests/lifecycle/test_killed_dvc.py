"""A killed DVC leaves no trainer behind, and a second DVC refuses to run at the same time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

ENDS, STAYS = "end_with_dvc()", "pass"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="starts shells")]


@pytest.fixture
def repo(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], subprocess.Popen[str]]:
    """Starts `dvc repro` with a stage that waits for a file named `go`. The argument is the stage's first statement."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    Path("dvc.yaml").write_text("stages:\n  wait: {cmd: python stage.py, outs: [out.txt]}\n")
    subprocess.run("git init --quiet && dvc init --quiet", shell=True, check=True)

    def start(first: str) -> subprocess.Popen[str]:
        code = f"""\
            import os, time
            from pathlib import Path
            from prefdag.lifecycle.lock import end_with_dvc
            {first}
            Path("pid.tmp").write_text(str(os.getpid()))
            Path("pid.tmp").rename("pid")
            while not Path("go").exists(): time.sleep(0.05)
            Path("out.txt").write_text("done")
            """
        Path("stage.py").write_text(dedent(code))
        return subprocess.Popen(["dvc", "repro"], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    return start


def stage_process() -> psutil.Process:
    """The stage's process, once it is waiting."""
    deadline = time.monotonic() + 60
    while not Path("pid").exists():
        assert time.monotonic() < deadline, "the stage did not start"
        time.sleep(0.05)
    return psutil.Process(int(Path("pid").read_text()))


def ended(process: psutil.Process, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except psutil.TimeoutExpired:
        return False
    return True


@pytest.mark.parametrize(
    "shell", ["/bin/sh", "/bin/bash"]
)  # dash stays as a process between DVC and the stage, bash does not
@pytest.mark.parametrize("first", [ENDS, STAYS])
def test_a_stage_ends_with_the_dvc_that_started_it(
    repo: Callable[[str], subprocess.Popen[str]], first: str, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", shell)
    with repo(first) as dvc:
        process = stage_process()
        dvc.kill()
        dvc.wait()
        # Without the call the stage survives, so the test can fail.
        assert ended(process, 30 if first == ENDS else 1) == (first == ENDS)
        if first == STAYS:
            process.send_signal(signal.SIGKILL)
    Path("pid").unlink()
    Path("go").touch()
    again = subprocess.run(["dvc", "repro"], text=True, capture_output=True)
    assert (again.returncode, Path("out.txt").read_text()) == (0, "done"), again.stderr


def test_a_second_repro_refuses_at_once(repo: Callable[[str], subprocess.Popen[str]]) -> None:
    with repo(ENDS) as dvc:
        stage_process()
        second = subprocess.run(["dvc", "repro"], text=True, capture_output=True, timeout=60)
        Path("go").touch()
        assert dvc.wait(60) == 0
    assert second.returncode != 0
    assert "lock" in second.stderr
    assert Path("out.txt").read_text() == "done"
