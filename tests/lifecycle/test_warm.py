"""A stage that is forked from a process with its libraries imported looks from outside as if it were a process of its own."""

import json
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

from prefdag.lifecycle.environment import BESIDE_OTHERS
from prefdag.lifecycle.zygote import LIBRARIES, OTHERS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="only there are stages forked")]

# Runs each argument as a command, as DVC does, and notes how it ended.
DVC = """
import json, os, subprocess, sys
for number, command in enumerate(sys.argv[1:]):
    code = subprocess.call(command, shell=True, env={**os.environ, "DVC_STAGE": f"toy-{number}"})
    with open("ended", "a") as ended:
        print(code, file=ended)
"""
FAKED = {
    *("torch", "torchvision", "scipy", "transformers", "accelerate", "peft", "mlflow"),  # imported within no time
    *("great_expectations", "matplotlib"),
}
STAGE = f"exec {sys.executable} -m stages.toy"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, root: Path) -> Start:
    """Starts a DVC whose stages have this body, in a project of its own."""
    make_project(tmp_path)
    for name in FAKED:
        (tmp_path / f"{name}.py").touch()

    def dvc(
        body: str, *commands: str, decorator: str = "distributed_stage", **environment: str
    ) -> "subprocess.Popen[str]":
        head = """\
            import json, os, sys, time
            from pathlib import Path
            LOADED = "torch" in sys.modules
            from prefdag.lifecycle.errors import DataError, NumericError
            from prefdag.runtime.stage import distributed_stage, stage

            @DECORATOR
            def main(beta: float) -> None:
            """
        write_stage(tmp_path, head.replace("DECORATOR", decorator), body)
        return subprocess.Popen(
            [sys.executable, "-c", DVC, *(commands or [STAGE])],
            cwd=tmp_path,
            # Set already, since they would depend on the stages of other tests that run meanwhile.
            env={**os.environ, **BESIDE_OTHERS, "PYTHONPATH": str(root), **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return dvc


def wait_for(path: Path) -> int:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.02)
    return int(path.read_text())


def gone(*pids: int) -> bool:
    """Whether these processes end within seconds."""
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_the_libraries_exist() -> None:
    for library in LIBRARIES + OTHERS:
        assert __import__(library)


NOTE = (
    "name = Path('/proc/self/comm').read_text().strip(); "
    "print(json.dumps([LOADED, os.getppid(), os.environ['DVC_STAGE'], os.getcwd(), name, sys.argv, beta]), flush=True)"
)


def test_stages_of_one_dvc_are_forks_of_one_process_that_ends_with_it(start: Start, tmp_path: Path, root: Path) -> None:
    edit = f"{sys.executable} -c \"p = 'stages/toy.py'; t = open(p).read(); open(p, 'w').write(t.replace('beta]', '-1]'))\""
    printed, errors = start(NOTE, STAGE, edit, STAGE).communicate(timeout=60)
    first, second = (json.loads(line) for line in printed.splitlines())
    assert errors == ""
    script = str(tmp_path / "stages/toy.py")
    assert first == [True, second[1], "toy-0", str(tmp_path), "stages.toy", [script], 0.1]
    assert second == [
        True,
        first[1],
        "toy-2",
        str(tmp_path),
        "stages.toy",
        [script],
        -1,
    ]  # the code is that of the edit
    assert gone(first[1])
    assert [*(tmp_path / ".prefdag/warm").iterdir()] == []


def test_a_stage_that_does_not_compute_waits_for_no_imports(start: Start, tmp_path: Path) -> None:
    """It starts them, for the next ones."""
    (tmp_path / "torch.py").write_text("import os, time\nwhile not os.path.exists('imported'): time.sleep(0.02)")
    (tmp_path / "ready.py").write_text(
        "import socket\nfrom pathlib import Path\nconnection = socket.socket(socket.AF_UNIX)\n"
        "connection.connect(str(next(Path('.prefdag/warm').iterdir())))\nassert connection.recv(6) == b'ready\\n'"
    )
    ready = f"touch imported; {sys.executable} ready.py"
    printed, errors = start(NOTE, STAGE, ready, STAGE, decorator="stage").communicate(timeout=60)
    first, second = (json.loads(line) for line in printed.splitlines())
    assert errors == ""
    assert (first[0], second[0]) == (False, True)
    assert gone(second[1])


def test_imports_that_nobody_waits_for_end_with_dvc(start: Start, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import os, pathlib, select, sys\npathlib.Path('pid').write_text(str(os.getpid()))\n"
        "select.select([int(sys.argv[2])], [], [])"  # until DVC has ended
    )
    (tmp_path / "peft.py").write_text("import pathlib\npathlib.Path('imported').touch()")
    start("pass", STAGE, decorator="stage").communicate(timeout=60)
    assert gone(wait_for(tmp_path / "pid"))
    assert not (tmp_path / "imported").exists()
    assert [*(tmp_path / ".prefdag/warm").iterdir()] == []


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        (STAGE, {"PREFDAG_WARM": "off"}),
        (STAGE, {"RANK": "0", "WORLD_SIZE": "2"}),  # a launcher counts its processes
        (f"{STAGE} <&-", {}),  # a stream cannot be passed on
        (f"unset DVC_STAGE; {STAGE}", {}),  # not under DVC
    ],
)
def test_a_stage_may_be_a_process_of_its_own(start: Start, command: str, environment: dict[str, str]) -> None:
    note = NOTE.replace("os.environ['DVC_STAGE']", "''")
    printed, _ = start(note, command, **environment).communicate(timeout=60)
    assert json.loads(printed)[0] is False


@pytest.mark.parametrize(
    "other", ["umask 077", "ulimit -n 512", "export OMP_NUM_THREADS=7", "mkdir -p else; cp -r * else; cd else", "nice"]
)
def test_a_fork_has_all_that_its_stage_would_inherit(start: Start, other: str) -> None:
    run = f"{other} {STAGE.removeprefix('exec ')}" if other == "nice" else f"{other}; {STAGE}"
    note = (
        "import resource; umask = os.umask(0o22); "
        "print(json.dumps([os.getppid(), umask, resource.getrlimit(resource.RLIMIT_NOFILE), os.nice(0), os.getcwd(), "
        "os.environ['OMP_NUM_THREADS']]))"
    )
    printed, errors = start(note, STAGE, run, STAGE, OMP_NUM_THREADS="1").communicate(timeout=60)
    first, second, third = (json.loads(line) for line in printed.splitlines())
    assert first == third, errors
    assert first[0] != second[0]
    assert first[1:] != second[1:]


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        ("DataError('rows.csv: row 3: empty')", 2, "error: rows.csv: row 3: empty"),
        ("NumericError('step 5: loss nan')", 3, "error: step 5: loss nan"),
        ("OSError(28, 'No space left on device')", 1, "error: toy: No space left on device"),
        ("KeyboardInterrupt", 130, "toy: interrupted; run it again to continue"),
        (
            "ZeroDivisionError",
            1,
            "This is a bug in prefdag, not a mistake of yours. Please report it with the lines above.",
        ),
        ("SystemExit(7)", 7, ""),
    ],
)
def test_a_stage_that_fails_ends_with_its_line_and_code(
    start: Start, tmp_path: Path, failure: str, code: int, line: str
) -> None:
    _, errors = start(f"raise {failure}").communicate(timeout=60)
    assert errors.splitlines()[-1:] == ([line] if line else [])
    assert (tmp_path / "ended").read_text() == f"{code}\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_reaches_the_fork(start: Start, tmp_path: Path, number: signal.Signals, code: int) -> None:
    dvc = start("Path('pid').write_text(str(os.getpid())); time.sleep(600)")
    pid = wait_for(tmp_path / "pid")
    (stage,) = psutil.Process(dvc.pid).children()
    stage.send_signal(number)
    dvc.communicate(timeout=60)
    assert gone(pid)
    assert int((tmp_path / "ended").read_text()) == code


def test_the_stage_ends_as_its_fork_that_is_killed(start: Start, tmp_path: Path) -> None:
    dvc = start("os.kill(os.getpid(), 9)")
    dvc.communicate(timeout=60)
    assert (tmp_path / "ended").read_text() == "-9\n"


def test_no_fork_outlives_the_process_that_forks(start: Start, tmp_path: Path) -> None:
    """The next stage starts another one."""
    body = (
        "pid = Path('pid'); first = not pid.exists(); pid.write_text(str(os.getpid())); time.sleep(600 if first else 0)"
    )
    dvc = start(body, STAGE, STAGE)
    pid = wait_for(tmp_path / "pid")
    parent = psutil.Process(pid).parent()
    assert parent
    parent.kill()
    _, errors = dvc.communicate(timeout=60)
    assert "the process that runs it was killed; run it again to continue" in errors
    assert (tmp_path / "ended").read_text() == "1\n0\n"
    assert gone(pid)


def test_nothing_outlives_a_killed_dvc(start: Start, tmp_path: Path) -> None:
    dvc = start("Path('pid').write_text(str(os.getpid())); time.sleep(600)")
    pid = wait_for(tmp_path / "pid")
    parent = psutil.Process(pid).parent()
    (stage,) = psutil.Process(dvc.pid).children()
    assert parent
    dvc.kill()
    dvc.wait()
    assert gone(pid, parent.pid, stage.pid)
