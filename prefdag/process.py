"""This process: the device it computes on, and its place among those that `accelerate launch` or torchrun started."""

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def process() -> PartialState:
    """The state of this process: `device` (a GPU where there is one), `process_index`, `is_main_process`.

    Called before anything else of accelerate: left alone, that takes several processes without a GPU for one each.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
