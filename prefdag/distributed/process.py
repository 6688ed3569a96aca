"""This process: its device, and its rank among the processes that `accelerate launch` or torchrun started."""

import ctypes
import functools
import os
import sys
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def process() -> PartialState:
    """The state of this process: `device` (a GPU if available), `process_index`, `is_main_process`.

    Call it before anything else from accelerate: without this, accelerate treats each CPU process as the only one.
    """
    keep_freed_memory()
    repeat_exactly()
    # Processes wait for the first one, which may download or ask a judge for hours. A dead one is the launcher's to notice.
    return PartialState(
        cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available(), timeout=timedelta(days=7)
    )


@functools.cache
def keep_freed_memory() -> None:
    """Make glibc's malloc reuse freed memory: memory returned to the system costs every step page faults.

    This covers tensors of up to 32 MB, glibc's limit. Without glibc it does nothing.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda name, value: 0)
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 32 * 2**20)


@functools.cache
def repeat_exactly() -> None:
    """On a GPU, make operations give the same bits every time, so that a resumed run equals an uninterrupted one.

    An operation that cannot gives a warning.
    """
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it before its first product
        # This would fill new tensors with NaN, to find bugs.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True, warn_only=True)
