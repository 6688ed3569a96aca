"""A function applied in several processes: as in one, in the same order, and nothing is left when one of them is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from paths import ROOT

from prefdag.lifecycle.errors import DataError, PrefdagError
from prefdag.runtime import processes
from prefdag.runtime.processes import apply_each, cores


@pytest.fixture(autouse=True)
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")


def where(number: int) -> tuple[int, int]:
    time.sleep(0.002 * (number % 3))
    return number, os.getpid()


def test_results_are_in_order_whichever_process_is_first() -> None:
    numbers, pids = zip(*apply_each(where, range(60), 60), strict=True)
    assert numbers == tuple(range(60))
    assert 1 < len(set(pids)) <= 3
    assert os.getpid() not in pids


@pytest.mark.parametrize(("threads", "total"), [("1", 60), ("3", 1), ("3", 0)])
def test_one_core_or_one_item_takes_no_process(threads: str, total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert list(apply_each(where, range(total), total)) == [(number, os.getpid()) for number in range(total)]


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores() == len(psutil.Process().cpu_affinity())


def test_items_are_read_as_they_are_needed() -> None:
    """So memory does not grow with their number."""
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1, 101):
            read.append(number)
            yield number

    for number in apply_each(abs, items(), 100):
        assert len(read) <= number - 1 + processes.AHEAD
    assert len(read) == 100


def test_the_first_item_that_fails_is_told_and_the_rest_is_not_done() -> None:
    def refuse(number: int) -> int:
        if number in (9, 11, 20):
            time.sleep(0.2 if number == 9 else 0)
            raise DataError(f"item {number}")
        return number

    done: list[int] = []
    with pytest.raises(DataError, match=r"^item 9$"):
        done.extend(apply_each(refuse, range(60), 60))
    assert done == list(range(9))
    assert not psutil.Process().children()


def test_a_killed_process_is_one_line() -> None:
    def die(number: int) -> int:
        if number == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(PrefdagError, match=r"was killed.*; OMP_NUM_THREADS=1 takes a single one$"):
        list(apply_each(die, range(60), 60))


def refused(*_: object, **__: object) -> Any:
    raise OSError(11, "Resource temporarily unavailable")


@pytest.mark.parametrize("name", ["os.fork", "_multiprocessing.SemLock"])
def test_without_other_processes_this_one_does_it(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit of processes, or a container without shared memory."""
    monkeypatch.setattr(name, refused)
    assert list(apply_each(where, range(9), 9)) == [(number, os.getpid()) for number in range(9)]
    assert caplog.messages == ["one process instead of 3: [Errno 11] Resource temporarily unavailable"]


SLOW = """
import time
from prefdag.runtime.processes import apply_each
for _ in apply_each(lambda _: time.sleep(0.01), range(1000), 1000):
    print("started", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stage_that_is_stopped_leaves_no_process(number: signal.Signals) -> None:
    """Its processes wait for work. Ctrl-C reaches all of them, and only the parent tells of it; the others reach it alone."""
    pipe: Any = subprocess.PIPE
    command = [sys.executable, "-c", SLOW]
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, process_group=0) as stage:
        assert stage.stdout
        stage.stdout.readline()
        children = psutil.Process(stage.pid).children()
        assert len(children) == 3
        time.sleep(1)
        if number == signal.SIGINT:
            os.killpg(stage.pid, number)
        else:
            stage.send_signal(number)
        _, errors = stage.communicate(timeout=60)
        assert stage.returncode == -number
    assert errors.count("Traceback") == (number == signal.SIGINT)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
