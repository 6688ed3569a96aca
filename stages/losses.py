"""Losses of your own. No stage: the stages that use losses import this file, so an edit reruns them and nothing else.

A loss takes `chosen` and `rejected`, (pairs,) each, and beta, and returns one loss per pair. By default the two are log-ratios
log pi(y|x) - log pi_ref(y|x); `Loss(..., input="mean_logps")` asks for something else. Keyword arguments are its options, with
defaults. `prefdag/dpo/losses.py` has examples of all kinds; docs/notebook.md explains what can be declared.

    import torch.nn.functional as F
    from torch import Tensor

    def focal(chosen: Tensor, rejected: Tensor, beta: float, *, gamma: float = 1.0) -> Tensor:
        z = beta * (chosen - rejected)
        return -((-z).sigmoid() ** gamma) * F.logsigmoid(z)

    LOSSES: dict[str, Loss] = {"focal": Loss(focal, of_margin=True)}

Then, in params.yaml: `loss: focal`, or in a sum, `loss: {focal: 0.8, sft: 0.2}`; and `loss_options.own: {gamma: 2.0}`.
"""

from prefdag.dpo.losses import Loss

LOSSES: dict[str, Loss] = {}
