"""Runs a stage in a process that kills itself with SIGKILL at a named point, as `kill -9` would.

The processes are forked from a server that has imported the stages' modules but computed nothing. This saves seconds each.
"""

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

PRELOADED = [
    "mlflow",
    "peft",
    "transformers.models.llama.modeling_llama",
    "prefdag.dpo.preference",
    "prefdag.dpo.reference",
    "prefdag.image.classification_task",
    "prefdag.image.dpo_task",
    "prefdag.image.negatives",
    "prefdag.text.dpo_task",
    "prefdag.text.sft_task",
    "prefdag.text.trainable",
    "prefdag.train.session",
]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before(module: Any, name: str, nth: int, here: Callable[..., bool] = lambda *_: True) -> None:
    """Die instead of executing the nth call of a function."""
    _wrap(module, name, nth, here, before=True)


def _after(module: Any, name: str, nth: int, here: Callable[..., bool] = lambda *_: True) -> None:
    """Die right after the nth call of a function."""
    _wrap(module, name, nth, here, before=False)


def _wrap(module: Any, name: str, nth: int, here: Callable[..., bool], before: bool) -> None:
    original, calls = getattr(module, name), 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += here(*arguments)
        last = calls == nth  # decided before the call: nested calls count, too
        if last and before:
            _die()
        result = original(*arguments, **options)
        if last:
            _die()
        return result

    setattr(module, name, wrapped)


def _half_written(nth: int) -> None:
    from prefdag.train import checkpoint

    original, calls = checkpoint.save_file, 0

    def save_file(tensors: Any, path: Path) -> None:
        nonlocal calls
        calls += 1
        original(tensors, path)
        if calls == nth:
            os.truncate(path, path.stat().st_size // 2)
            _die()

    checkpoint.save_file = save_file  # type: ignore[assignment]


def _is_checkpoint(path: Path, *_: Any) -> bool:
    return "step-" in path.name


def _optimizer() -> Any:
    from accelerate.optimizer import AcceleratedOptimizer

    return AcceleratedOptimizer


def _checkpoint() -> Any:
    from prefdag.train import checkpoint

    return checkpoint


# Each takes n, and kills the process when it reaches the point for the nth time.
POINTS: dict[str, Callable[[int], None]] = {
    "mid-step, gradients and no update": lambda n: _before(_optimizer(), "step", n),
    "mid-step, updated and not noted": lambda n: _after(_optimizer(), "step", n),
    "mid-save, half of the tensors": _half_written,
    "mid-save, no manifest": lambda n: _before(
        _checkpoint(), "write_json", n, lambda path, _: path.name == _checkpoint().MANIFEST
    ),
    "before the rename": lambda n: _before(Path, "replace", n, _is_checkpoint),
    "after the rename": lambda n: _after(Path, "replace", n, _is_checkpoint),
}
RESULT = "before the rename of the result"


def _child(stage: str, folder: Path, log: Path, point: str | None, nth: int) -> None:
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        del os.environ[name]
    sys.argv = [stage]
    _checkpoint().Checkpoints.clear = lambda self: None  # keep the last checkpoint for comparison
    if point == RESULT:
        _before(Path, "replace", nth, lambda path, target: target.parent.name == "models")
    elif point is not None:
        POINTS[point](nth)
    importlib.import_module(f"stages.{stage}").main.run()


def server() -> ForkServerContext:
    """The fork server. It starts with the first process and ends with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_stage(stage: str, folder: Path, point: str | None = None, nth: int = 1) -> tuple[int | None, str]:
    """Run a stage in a folder, up to a point where it is killed. Returns its exit code, -9 if killed, and its output."""
    log = folder / "stage.log"
    log.unlink(missing_ok=True)
    process = server().Process(target=_child, args=(stage, folder, log, point, nth))
    process.start()
    process.join()
    return process.exitcode, log.read_text(errors="replace")
