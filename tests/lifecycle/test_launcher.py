"""A stage that a launcher runs in two processes looks from outside as if it ran in one: its exit codes, lines and signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from toy_stage import make_project, write_stage

from prefdag.lifecycle.launcher import to_launch

pytestmark = pytest.mark.slow

TWO = "torchrun --standalone --nproc-per-node 2"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, root: Path) -> Start:
    """Starts a stage with this body, which knows its `rank`, in a project of its own."""
    make_project(tmp_path)

    def stage(body: str, launcher: str = TWO) -> "subprocess.Popen[str]":
        head = """\
            import os, time
            from pathlib import Path
            from prefdag.lifecycle.launcher import rank as of_this_process
            from prefdag.lifecycle.errors import DataError, NumericError
            from prefdag.runtime.artifacts import writing
            from prefdag.runtime.stage import distributed_stage

            @distributed_stage
            def main(beta: float) -> None:
                rank = of_this_process()
                Path(f"started-{rank}").write_text(str(os.getpid()))
            """
        write_stage(tmp_path, head, body)
        environment = {**os.environ, "PYTHONPATH": str(root), "PREFDAG_LAUNCHER": launcher}
        command = [sys.executable, "-m", "stages.toy"]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE)

    return stage


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline, files
        time.sleep(0.05)


def end(process: "subprocess.Popen[str]", whole: bool = False) -> tuple[int, str]:
    """The exit code, and the last line of stderr, or all of it."""
    _, printed = process.communicate(timeout=90)
    return process.returncode, printed if whole else printed.splitlines()[-1] if printed else ""


def test_only_a_launchers_rank_keeps_a_stage_from_launching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFDAG_LAUNCHER", TWO)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert to_launch()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not to_launch()


def test_the_first_process_writes(start: Start, tmp_path: Path) -> None:
    body = "with writing(Path('out')) as path: path.write_text(f'by {rank}')"
    assert end(start(body)) == (0, "")
    assert (tmp_path / "out").read_text() == "by 0"
    assert sorted(path.name for path in tmp_path.glob("started-*")) == ["started-0", "started-1"]
    assert [*(tmp_path / ".prefdag").glob("launch-*")] == []


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        ("DataError('rows.csv: row 3: empty')", 2, "error: rows.csv: row 3: empty"),
        ("NumericError('step 5: loss nan')", 3, "error: step 5: loss nan"),
        ("OSError(28, 'No space left on device')", 1, "error: toy: No space left on device"),
        ("KeyboardInterrupt", 130, "toy: interrupted; run it again to continue"),
        ("ZeroDivisionError", 1, "error: toy: ZeroDivisionError; its traceback is above"),
    ],
)
def test_the_process_that_fails_ends_all_with_its_line_and_code(
    start: Start, failure: str, code: int, line: str
) -> None:
    """The other one would go on for minutes. The launcher's own report, of thirty lines, is not seen."""
    begin = time.monotonic()
    ended, printed = end(start(f"if rank == 1: raise {failure}\n    time.sleep(600)"), whole=True)
    assert (ended, printed.splitlines()[-1]) == (code, line)
    bug = "its traceback is above" in line
    assert ("Traceback" in printed, "This is a bug" in printed) == (bug, bug), printed
    assert bug or printed == f"{line}\n", printed
    assert time.monotonic() - begin < 60


def test_the_first_failure_is_told(start: Start) -> None:
    """The other process fails once the first one has."""
    wait = "while rank == 0 and not [*Path('.prefdag').glob('launch-*/failure.json')]: time.sleep(0.01)"
    assert end(start(f"{wait}\n    raise DataError(f'by {{rank}}')"), whole=True) == (2, "error: by 1\n")


def test_of_a_process_that_crashes_the_launcher_tells(start: Start) -> None:
    code, printed = end(start("time.sleep(600) if rank == 0 else os.kill(os.getpid(), 9)"), whole=True)
    assert (code, "Signal 9 (SIGKILL)" in printed) == (1, True)
    assert printed.endswith("error: 'torchrun' ended with exit code 1; its own lines above say why\n")


def test_a_launcher_that_goes_on_after_a_failure_is_ended(start: Start, tmp_path: Path) -> None:
    """As on another machine where the failure is not seen."""
    (tmp_path / "launch.sh").write_text('RANK=0 WORLD_SIZE=1 python "$@"; exec sleep 600')
    begin = time.monotonic()
    assert end(start("raise DataError('no')", f"bash {tmp_path}/launch.sh")) == (2, "error: no")
    assert 10 < time.monotonic() - begin < 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    process = start("time.sleep(600)")
    files = [tmp_path / f"started-{rank}" for rank in (0, 1)]
    wait_for(*files)
    process.send_signal(number)
    code, printed = end(process, whole=True)
    assert number == signal.SIGTERM or printed == "toy: interrupted; run it again to continue\n"
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 1}[number]
    assert not any(psutil.pid_exists(int(file.read_text())) for file in files)


def test_processes_end_with_the_one_that_launched_them(start: Start, tmp_path: Path) -> None:
    process = start("time.sleep(600)")
    files = [tmp_path / f"started-{rank}" for rank in (0, 1)]
    wait_for(*files)
    process.kill()
    process.wait()  # before reading its stderr, which they have open
    _, alive = psutil.wait_procs([psutil.Process(int(file.read_text())) for file in files if _lives(file)], 30)
    assert alive == []


def _lives(file: Path) -> bool:
    return psutil.pid_exists(int(file.read_text()))


@pytest.mark.parametrize(
    ("launcher", "line"),
    [
        (
            "no-such-launcher -n 2",
            "error: PREFDAG_LAUNCHER: 'no-such-launcher' cannot be started: No such file or directory",
        ),
        (sys.executable, "sets no RANK; use torchrun, accelerate launch, or srun torchrun"),
    ],
)
def test_a_launcher_that_is_none_is_one_line(start: Start, launcher: str, line: str) -> None:
    code, last = end(start("pass", launcher))
    assert (code, line in last) == (2, True), last
