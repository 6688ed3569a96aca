"""The reward model that the pipeline trained: how it ranks held-out pairs, and its verdicts. It judges only if it beats chance.

It reads what it was trained on: the token ids of the prompt, cut as in training, and of the response, and nothing after them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForSequenceClassification

from prefdag.distributed.process import process
from prefdag.distributed.sharing import shared_out
from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.lifecycle.progress import progress
from prefdag.recorded import recorded
from prefdag.runtime.artifacts import read_json
from prefdag.stats.reward_model import figures
from prefdag.text.evaluation.judge import by_rewards
from prefdag.text.reward_model import both_groups

if TYPE_CHECKING:
    from prefdag.text.scoring.formatted import FormattedPairs
    from prefdag.text.scoring.packing import TokenIds

HELDOUT = "heldout.json"  # in the model's folder: the figures of held-out pairs, null if there is no model


def load(folder: Path) -> nn.Module:
    """The reward model in `folder`, in eval mode. Raises `DataError`."""
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
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
    if absent := sorted(info["missing_keys"]):
        raise DataError(f"{folder}: missing tensor {absent[0]}; `dvc repro` makes the model again")
    module: nn.Module = model.eval().to(process().device)
    return module


@torch.no_grad()
def reward(model: nn.Module, prompt: "TokenIds", response: "TokenIds") -> float:
    """At the last token of a response. Alone in its batch, it needs no padding, which the head could mistake for its end."""
    ids = torch.tensor(np.concatenate([prompt, response]).astype(np.int64), device=next(model.parameters()).device)
    return float(model(input_ids=ids[None]).logits.float().squeeze())


def heldout(folder: Path, pairs: "FormattedPairs") -> dict[str, Any]:
    """The figures of the reward model in `folder` on pairs that all have two responses."""
    model = load(folder)
    rows = []
    with progress(len(pairs), "pair", "held-out pairs") as bar:
        for prompt, responses in both_groups(pairs):
            rows.append([reward(model, prompt, each) for each in responses])
            bar.update()
    chosen, rejected = torch.tensor(rows, dtype=torch.float64).T
    preference = torch.tensor(pairs.preference, dtype=torch.float64)
    chosen_tokens, rejected_tokens = torch.tensor(pairs.lengths[:, 1:]).T
    return figures(chosen, rejected, preference, (chosen_tokens, rejected_tokens))


def check_beats_chance(found: dict[str, Any] | None, where: str) -> None:
    """Check that the reward model is shown to rank unseen pairs better than a coin.

    Args:
        found: the figures that `heldout` gave; None: there is no reward model.
        where: the judge's key in params.yaml.

    Raises:
        ParamsError: there is none, or the 95% interval of its accuracy reaches down to one half.
    """
    if found is None:
        raise ParamsError(
            f"params.yaml: {where}.source: no reward model was trained; set reward_model.train to true, or choose another judge"
        )
    if found["accuracy_low"] <= 0.5:
        raise ParamsError(
            f"params.yaml: {where}: the trained reward model is not shown to be better than chance: it ranks "
            f"{found['accuracy']:.2f} of {found['n']} held-out pairs right (95% interval {found['accuracy_low']:.2f} to "
            f"{found['accuracy_high']:.2f}); train it on more pairs or for longer, or choose another judge"
        )


def verdicts(pairs: pd.DataFrame, folder: Path, where: str) -> pd.DataFrame:
    """Verdicts of the reward model in `folder` on `judge.contests`. Raises `ParamsError` as `check_beats_chance`."""
    check_beats_chance(read_json(folder / HELDOUT), where)
    model = load(folder)

    def rewards(rows: Iterable[dict[Any, Any]]) -> list[list[float]]:
        return [
            [reward(model, row["prompt_ids"], row[f"ids_{role}"]) for role in ("reference", "policy")] for row in rows
        ]

    each = [[row] for row in pairs.to_dict("records")]
    table = np.concatenate(shared_out(each, rewards, "contest", "reward model"))
    return by_rewards(pairs, table[:, 0], table[:, 1])
