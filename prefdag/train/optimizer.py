"""The optimiser, the learning rate and the order of the rows, as set in params.yaml."""

import math

import numpy as np
import torch
from torch import nn

from prefdag.config.training import StepDecay, Training
from prefdag.train.eight_bit import AdamW8bit
from prefdag.train.task import split_evenly


def make_optimizer(parameters: list[nn.Parameter], config: Training) -> torch.optim.Optimizer:
    """The optimiser set in params.yaml; torch's defaults for everything else."""
    name, momentum = (
        (config.optimizer, 0.0)
        if isinstance(config.optimizer, str)
        else (config.optimizer.kind, config.optimizer.momentum)
    )
    rate, decay = config.learning_rate, config.weight_decay
    match name:
        case "adamw":  # decoupled weight decay, arXiv:1711.05101
            return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=True)
        case "adamw_8bit":
            return AdamW8bit(parameters, rate, decay)
        case "adam":
            return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=True)
        case "sgd":
            return torch.optim.SGD(parameters, rate, momentum, weight_decay=decay, fused=True)
        case _:
            return torch.optim.RMSprop(parameters, rate, momentum=momentum, weight_decay=decay)


def learning_rate(step: int, total: int, epoch: int, config: Training) -> float:
    """The learning rate of a step: linear warm-up, then constant, linear to 0, cosine to 0, or step decay."""
    warmup = math.ceil(config.warmup_fraction * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if isinstance(config.schedule, StepDecay):
        return config.learning_rate * config.schedule.factor ** (epoch // config.schedule.epochs)
    progress = (step - warmup) / max(1, total - warmup)
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return config.learning_rate * shape[config.schedule]


def batch_order(n_rows: int, config: Training, seed: int) -> list[tuple[int, list[int]]]:
    """Epoch and rows of every step. The order of an epoch is a pure function of the seed and its number."""
    steps: list[tuple[int, list[int]]] = []
    for epoch in range(config.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(n_rows)
        steps += [(epoch, rows) for rows in split_evenly(order, config.batch_size)]
    return steps
