"""Random numbers follow from the seed, the step and the rank, and from nothing else."""

import itertools

import torch

from prefdag.train.random_state import seed_step


def drawn(seed: int, step: int, rank: int) -> float:
    torch.rand(7)  # whatever was drawn before
    seed_step(seed, step, rank)
    return float(torch.rand(()))


def test_each_step_of_each_rank_has_its_own_numbers() -> None:
    places = [*itertools.product((0, 1, 2), repeat=3), (0, 1, 11), (0, 11, 1), (1, 0, 11)]
    numbers = [drawn(*place) for place in places]
    assert len(set(numbers)) == len(places)
    assert [drawn(*place) for place in places] == numbers
