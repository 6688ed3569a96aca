"""What base model, reference and policy make of held-out pairs and of eval sets."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from torch import Tensor

from prefdag.dpo.rewards import reward_metrics
from prefdag.text.logps import packs, response_logits, score
from prefdag.text.packing import Group


def cross_entropy(logps: np.ndarray, groups: Sequence[Group]) -> dict[str, float]:
    """Response-only cross-entropy in nats a token, and perplexity, its exponential, weighted by tokens.

    Args:
        logps: log-probabilities of the groups' responses, summed over tokens, (responses,).
    """
    nats = -float(logps.sum()) / n_tokens(groups)
    return {"cross_entropy": nats, "perplexity": math.exp(nats)}


def n_tokens(groups: Sequence[Group]) -> int:
    """How many tokens are scored."""
    return sum(len(response) for group in groups for response in group.responses)


def score_policy(policy: PeftModel, groups: Sequence[Group], max_tokens: int, name: str) -> dict[str, np.ndarray]:
    """Log-probabilities of responses under "reference" and "policy", (responses,), in the order of the groups."""
    with policy.disable_adapter():
        reference = score(policy, groups, max_tokens, f"{name}, reference")
    return {"reference": reference, "policy": score(policy, groups, max_tokens, f"{name}, policy")}


@torch.no_grad()
def score_heldout(policy: PeftModel, pairs: Sequence[Group], max_tokens: int) -> tuple[pd.DataFrame, float]:
    """Log-probabilities of held-out pairs, a row a pair, and the KL between policy and reference.

    The KL is KL(policy || reference) over the whole vocabulary, in nats a token, averaged over the scored tokens of both
    responses: exact where it is taken, though the contexts are the data's, not the policy's own.
    """
    logps: dict[str, list[Tensor]] = {"ref": [], "policy": []}
    kl, scored = 0.0, 0
    for packed in packs(policy, pairs, max_tokens, "heldout, reference and policy"):
        with policy.disable_adapter():
            reference = response_logits(policy, packed).log_softmax(-1)
        trained = response_logits(policy, packed).log_softmax(-1)
        kl += float((trained.exp() * (trained - reference)).sum(-1).double().sum())
        scored += len(packed.targets)
        for name, token_logps in (("ref", reference), ("policy", trained)):
            target = token_logps.gather(1, packed.targets[:, None])[:, 0]
            sums = torch.zeros(packed.n_responses, device=target.device).index_add(0, packed.owners, target)
            logps[name].append(sums.double().cpu().view(-1, 2))
    columns = {name: torch.cat(parts) for name, parts in logps.items()}
    frame = pd.DataFrame(
        {
            f"{name}_{side}_logps": columns[name][:, number]
            for name in ("policy", "ref")
            for number, side in enumerate(("chosen", "rejected"))
        }
    )
    return frame, kl / scored


def heldout_metrics(frame: pd.DataFrame, kl: float, base: np.ndarray, chosen: Sequence[Group]) -> dict[str, Any]:
    """Implicit rewards with intervals, KL, and cross-entropies of the chosen responses.

    Args:
        frame: from `score_heldout`, with the columns that `add_rewards` adds.
        base: log-probabilities of the chosen responses under the base model, (pairs,).
        chosen: prompts with their chosen responses, in the same order.
    """
    models = {
        "base": base,
        "reference": frame["ref_chosen_logps"].to_numpy(),
        "policy": frame["policy_chosen_logps"].to_numpy(),
    }
    return {
        "n_pairs": len(frame),
        "rewards": reward_metrics(
            *(torch.tensor(frame[f"reward_{side}"].to_numpy()) for side in ("chosen", "rejected"))
        ),
        "kl": kl,
        **set_metrics(models, chosen),
    }


def add_rewards(frame: pd.DataFrame, beta: float) -> pd.DataFrame:
    """The frame of `score_heldout` with implicit rewards, beta times the log-ratio, and their margin."""
    rewards = {
        f"reward_{s}": beta * (frame[f"policy_{s}_logps"] - frame[f"ref_{s}_logps"]) for s in ("chosen", "rejected")
    }
    return pd.DataFrame({**rewards, "margin": rewards["reward_chosen"] - rewards["reward_rejected"]}).join(frame)


def set_metrics(logps: Mapping[str, np.ndarray], groups: Sequence[Group]) -> dict[str, Any]:
    """Cross-entropy and perplexity of one set under each model."""
    return {
        "n_rows": len(groups),
        "n_tokens": n_tokens(groups),
        **{name: cross_entropy(values, groups) for name, values in logps.items()},
    }


def table(metrics: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The cross-entropies of all sets and models, a row each."""
    return pd.DataFrame(
        [
            {"set": name, "model": model, **values[model], "n_tokens": values["n_tokens"], "n_rows": values["n_rows"]}
            for name, values in metrics.items()
            for model in ("base", "reference", "policy")
        ]
    )
