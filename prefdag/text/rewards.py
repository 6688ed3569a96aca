"""Rewards of the reward model that the pipeline trained, as transformers computes them.

It reads what it was trained on: the token ids of the prompt, cut as in training, and those of the response, and nothing more.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForSequenceClassification

from prefdag.distributed.process import process
from prefdag.lifecycle.errors import DataError
from prefdag.recorded import recorded

if TYPE_CHECKING:
    from prefdag.text.scoring.packing import TokenIds


def load(folder: Path) -> nn.Module:
    """The reward model in `folder`, in eval mode. Raises `DataError` if it is not one that `reward_model.save` wrote."""
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            recorded(folder),
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: no reward model ({reason}); `dvc repro` makes it again") from None
    for kind in ("missing", "unexpected", "mismatched"):
        if names := sorted(map(str, report[f"{kind}_keys"])):
            raise DataError(f"{folder}: {kind} tensor {names[0]}, of {len(names)}; `dvc repro` makes the model again")
    module: nn.Module = model.eval().to(process().device)
    return module


@torch.no_grad()
def reward(model: nn.Module, prompt: "TokenIds", response: "TokenIds") -> float:
    """At the last token of a response. Alone in its batch, it needs no padding, which the head could mistake for its end."""
    ids = torch.tensor(np.concatenate([prompt, response]).astype(np.int64), device=next(model.parameters()).device)
    return float(model(input_ids=ids[None]).logits.float().squeeze())
