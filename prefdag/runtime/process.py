"""This process: the device it computes on, and its place among those that `accelerate launch` or torchrun started."""

import ctypes
import functools
import sys

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def process() -> PartialState:
    """The state of this process: `device` (a GPU where there is one), `process_index`, `is_main_process`.

    Called before anything else of accelerate: left alone, that takes several processes without a GPU for one each.
    """
    keep_freed_memory()
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc's malloc hand freed memory out again: returned to the system, each step pays for it in page faults.

    Only up to 32 MB a tensor, which is as far as glibc goes. Elsewhere nothing happens.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda name, value: 0)
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 32 * 2**20)
