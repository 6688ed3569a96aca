"""The random numbers of a training: dropout, and whatever else a model draws from torch's generators."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for one step of one process.

    So random numbers follow from the place in the training. A resumed run draws the same ones without any saved state, on
    however many processes, and no two processes draw the same.
    """
    torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:8], "big"))


def random_state() -> dict[str, Tensor]:
    """The state of the random number generators by device."""
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Restore the state that `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
