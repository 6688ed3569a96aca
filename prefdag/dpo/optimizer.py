"""The optimiser and its learning rate, as params.yaml names them."""

import math

import torch
from torch import nn

from prefdag.config import StepDecay, Training


def make_optimizer(parameters: list[nn.Parameter], config: Training) -> torch.optim.Optimizer:
    """The optimiser that params.yaml names, with torch's defaults for what it does not name."""
    name, momentum = (
        (config.optimizer, 0.0)
        if isinstance(config.optimizer, str)
        else (config.optimizer.kind, config.optimizer.momentum)
    )
    rate, decay = config.learning_rate, config.weight_decay
    match name:
        case "adamw":  # decoupled weight decay, arXiv:1711.05101
            return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=True)
        case "adam":
            return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=True)
        case "sgd":
            return torch.optim.SGD(parameters, rate, momentum, weight_decay=decay, fused=True)
        case _:
            return torch.optim.RMSprop(parameters, rate, momentum=momentum, weight_decay=decay)


def learning_rate(step: int, total: int, epoch: int, config: Training) -> float:
    """The rate of a step: linear warm-up to `config.learning_rate`, then constant, linear to 0, half a cosine to 0, steps."""
    warmup = math.ceil(config.warmup_fraction * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if isinstance(config.schedule, StepDecay):
        return config.learning_rate * config.schedule.factor ** (epoch // config.schedule.epochs)
    progress = (step - warmup) / max(1, total - warmup)
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return config.learning_rate * shape[config.schedule]
