"""Log-probabilities of responses, with one forward pass per response."""

import torch
from torch import Tensor, nn

from prefdag.text.scoring.packing import Group


def naive_logps(model: nn.Module, groups: list[Group]) -> Tensor:
    """The log-probability of each response after its prompt, one forward pass per response."""
    sums = []
    for prompt, responses in groups:
        for response in responses:
            logits = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
            sums.append(torch.stack([logits[i, token] for i, token in zip(places, response, strict=True)]).sum())
    return torch.stack(sums)
