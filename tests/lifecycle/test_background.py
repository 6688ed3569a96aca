"""Calls in threads of their own: results, errors, the number at once, and a stop."""

import threading
import time

import pytest

from prefdag.lifecycle.background import in_background, in_parallel


def test_a_result_an_error_and_a_call_that_hangs() -> None:
    hanging = threading.Event()
    assert in_background(lambda: 7).result(timeout=5) == 7
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0).result(timeout=5)
    waiting = in_background(hanging.wait, "waits")
    with pytest.raises(TimeoutError):
        waiting.result(timeout=0.01)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "waits")
    hanging.set()
    assert thread.daemon
    assert waiting.result(timeout=5)


def test_results_carry_their_position_and_no_more_run_at_once_than_asked() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def call(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return item * item

    assert sorted(in_parallel(range(0, 20, 2), call, 3, threading.Event())) == [(i, 4 * i * i) for i in range(10)]
    assert most == 3


def test_after_an_error_nothing_more_is_started() -> None:
    started: list[int] = []

    def call(item: int) -> int:
        started.append(item)
        time.sleep(0.01)
        return 1 // (item - 3)

    with pytest.raises(ZeroDivisionError):
        list(in_parallel(range(100), call, 2, threading.Event()))
    assert len(started) <= 5


def test_calls_in_progress_learn_of_an_error_and_are_waited_for() -> None:
    stopped, told = threading.Event(), []

    def call(item: int) -> None:
        if item == 1:
            raise ValueError
        told.append(stopped.wait(5))

    with pytest.raises(ValueError, match=r"^$"):
        list(in_parallel(range(2), call, 2, stopped))
    assert told == [True]


def test_a_stop_ends_the_results() -> None:
    stopped = threading.Event()
    results = []
    for result in in_parallel(range(100), lambda item: item, 1, stopped):
        results.append(result)
        if len(results) == 3:
            stopped.set()
    assert [number for number, _ in results] == [0, 1, 2]
