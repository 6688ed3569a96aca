"""Metrics of base model, reference and policy on held-out pairs and eval sets."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from prefdag.distributed.sharing import shared_out
from prefdag.stats.intervals import ratio_difference
from prefdag.stats.rewards import reward_metrics, unpaired_reward_metrics
from prefdag.text.dpo_batch import pair_batch
from prefdag.text.scoring import vocabulary
from prefdag.text.scoring.logps import Pair, sum_over_tokens
from prefdag.text.scoring.packing import Group, batches, pack
from prefdag.text.scoring.states import head, response_states
from prefdag.train.outputs import map_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from prefdag.dpo.pair_batch import PairBatch
    from prefdag.text.model import ReferenceAndPolicy
    from prefdag.tokenizer.tokenizer import ChatTokenizer


def cross_entropy(logps: np.ndarray, groups: Sequence[Group]) -> dict[str, float]:
    """Response-only cross-entropy in nats per token, and perplexity, its exponential. A mean over tokens.

    Args:
        logps: log-probabilities of the groups' responses, summed over tokens, (responses,).
    """
    nats = -float(logps.sum()) / n_tokens(groups)
    return {"cross_entropy": nats, "perplexity": math.exp(nats)}


def n_tokens(groups: Sequence[Group]) -> int:
    """The number of scored tokens."""
    return sum(len(response) for group in groups for response in group.responses)


class Heldout(NamedTuple):
    """Held-out pairs under policy and reference.

    The KL is KL(policy || reference) over the whole vocabulary, in nats per token, averaged over the scored tokens of all
    responses. At each position it is exact, but the contexts are those of the data, not samples of the policy.
    """

    batch: "PairBatch"  # float64, on the CPU; `present` is set
    kl: float
    logratios: list[np.ndarray]  # log pi/pi_ref of each response, (tokens,), in the order of the groups
    kls: list[np.ndarray]  # the KL at each position of each response, nats, (tokens,), in the same order


@torch.no_grad()
def compare_heldout(models: "ReferenceAndPolicy", pairs: Sequence[Pair], max_tokens: int) -> Heldout:
    """Run both models once over held-out pairs, in batches of at most `max_tokens` tokens, which processes share."""
    device = next(models.policy.parameters()).device

    def compute(rows: Sequence[int]) -> Heldout:
        chunk = [pairs[i] for i in rows]
        packed = pack([pair.group for pair in chunk]).to(device)
        reference, policy = ((response_states(model, packed), head(model)) for model in models)
        tokens = vocabulary.logps_and_kl(*policy, *reference, packed.targets)
        logps = (sum_over_tokens(chunk, packed, each) for each in (tokens.policy, tokens.reference))
        lengths = [len(response) for pair in chunk for response in pair.group.responses]
        ends = np.cumsum(lengths)[:-1]
        logratios, kls = (
            np.split(each.cpu().numpy(), ends) for each in (tokens.policy - tokens.reference, tokens.kl.double())
        )
        batch = map_tensors(lambda tensor: tensor.double().cpu(), pair_batch(chunk, *logps))
        return Heldout(batch, float(tokens.kl.double().sum()), logratios, kls)

    each_batch = list(batches((pair.group for pair in pairs), max_tokens))
    parts = shared_out(each_batch, compute, "row", "heldout, reference and policy")
    batch = map_tensors(lambda *each: torch.cat(each), *(part.batch for part in parts))
    logratios, kls = ([each for part in parts for each in getattr(part, name)] for name in ("logratios", "kls"))
    has_chosen, has_rejected = (
        torch.tensor([getattr(pair, side) is not None for pair in pairs]).double() for side in ("chosen", "rejected")
    )
    batch = batch._replace(
        chosen=batch.chosen._replace(present=has_chosen), rejected=batch.rejected._replace(present=has_rejected)
    )
    return Heldout(batch, sum(part.kl for part in parts) / sum(map(len, logratios)), logratios, kls)


def tokens_table(
    ids: Iterable[str], pairs: Sequence[Pair], logratios: Sequence[np.ndarray], tokenizer: "ChatTokenizer"
) -> pd.DataFrame:
    """One row per response: `id`, `side`, and lists of its scored `tokens`, their `texts` and their `logratios`.

    The joined texts are the decoded response (`ChatTokenizer.texts`). The log-ratios, float32, in nats, sum to the log-ratio
    of the response, which is its implicit reward over beta (arXiv:2305.18290, eq. 5; per token arXiv:2404.12358).

    Args:
        ids: of the pairs.
        logratios: from `compare_heldout`.
    """
    responses = [
        (name, side, np.asarray(getattr(pair, side)).tolist())
        for name, pair in zip(ids, pairs, strict=True)
        for side in ("chosen", "rejected")
        if getattr(pair, side) is not None
    ]
    return pd.DataFrame(
        [
            {"id": name, "side": side, "tokens": tokens, "texts": tokenizer.texts(tokens), "logratios": values}
            for (name, side, tokens), values in zip(responses, logratios, strict=True)
        ]
    )


def presence(batch: "PairBatch") -> "tuple[Tensor, Tensor]":
    """Which rows have a chosen response, and which a rejected one, bool (rows,) each."""
    chosen, rejected = (
        torch.ones_like(response.logps) if response.present is None else response.present
        for response in (batch.chosen, batch.rejected)
    )
    return chosen.bool(), rejected.bool()


def heldout_table(batch: "PairBatch", rewards: "tuple[Tensor, Tensor]") -> pd.DataFrame:
    """One row per pair: implicit rewards (see `Preference.rewards`), their margin, and both models' log-probabilities.

    NaN where a row has no such response.
    """
    chosen, rejected = rewards
    has_chosen, has_rejected = presence(batch)
    columns = {
        "reward_chosen": (chosen, has_chosen),
        "reward_rejected": (rejected, has_rejected),
        "margin": (chosen - rejected, has_chosen & has_rejected),
        "policy_chosen_logps": (batch.chosen.logps, has_chosen),
        "policy_rejected_logps": (batch.rejected.logps, has_rejected),
        "ref_chosen_logps": (batch.chosen.ref_logps, has_chosen),
        "ref_rejected_logps": (batch.rejected.ref_logps, has_rejected),
    }
    return pd.DataFrame({name: values.where(has, torch.nan) for name, (values, has) in columns.items()})


def heldout_metrics(
    batch: "PairBatch",
    rewards: "tuple[Tensor, Tensor]",
    preference: np.ndarray,
    kl: float,
    logps: Mapping[str, np.ndarray],
    chosen: Sequence[Group],
) -> dict[str, Any]:
    """Implicit rewards with intervals, KL, and cross-entropies of the chosen responses.

    Counts: `n_pairs`, or `n_chosen` and `n_rejected` for unpaired responses.

    Args:
        batch: from `compare_heldout`.
        rewards: from `Preference.rewards`.
        preference: the probability that the chosen response is preferred, (rows,).
        logps: from `chosen_logps`.
        chosen: prompts with their chosen responses, in the same order.
    """
    has_chosen, has_rejected = presence(batch)
    metrics: dict[str, Any]
    if bool((has_chosen & has_rejected).all()):
        longer = batch.chosen.tokens - batch.rejected.tokens
        metrics = {"n_pairs": len(has_chosen), "rewards": reward_metrics(*rewards, torch.tensor(preference), longer)}
    else:
        of_chosen, of_rejected = rewards[0][has_chosen], rewards[1][has_rejected]
        metrics = {"n_chosen": len(of_chosen), "n_rejected": len(of_rejected)}
        metrics["rewards"] = unpaired_reward_metrics(of_chosen, of_rejected)
    return {**metrics, "kl": kl, **set_metrics(logps, chosen)}


def chosen_logps(batch: "PairBatch", base: np.ndarray) -> dict[str, np.ndarray]:
    """Log-probabilities of the chosen responses by model, (responses,); absent ones are left out. `base`: the base model's."""
    has_chosen, _ = presence(batch)
    chosen = batch.chosen
    return {
        "base": base,
        "reference": chosen.ref_logps[has_chosen].numpy(),
        "policy": chosen.logps[has_chosen].numpy(),
    }


def set_metrics(logps: Mapping[str, np.ndarray], groups: Sequence[Group]) -> dict[str, Any]:
    """Cross-entropy and perplexity of one set under each model, and their differences.

    `differences["A_B"]` is the cross-entropy of A minus that of B, with its paired bootstrap interval over rows.

    Args:
        logps: by model (base, reference, policy): log-probabilities of each group's one response, (groups,).
    """
    tokens = np.array([len(group.responses[0]) for group in groups], dtype=float)
    differences = {}
    for one, other in (("policy", "reference"), ("policy", "base"), ("reference", "base")):
        nats = -logps[one].astype(float), -logps[other].astype(float)
        low, high = ratio_difference(*nats, tokens)
        value = float((nats[0] - nats[1]).sum() / tokens.sum())
        differences[f"{one}_{other}"] = {"difference": value, "difference_low": low, "difference_high": high}
    return {
        "n_rows": len(groups),
        "n_tokens": n_tokens(groups),
        **{name: cross_entropy(values, groups) for name, values in logps.items()},
        "differences": differences,
    }


def rows_table(
    name: str, sources: Iterable[str], logps: Mapping[str, np.ndarray], groups: Sequence[Group]
) -> pd.DataFrame:
    """One row per scored response: `set`, `row` (its source), `n_tokens`, and its log-probabilities by model, `*_logps`."""
    columns = {f"{model}_logps": values.astype(float) for model, values in logps.items()}
    tokens = [len(group.responses[0]) for group in groups]
    return pd.DataFrame({"set": name, "row": list(sources), "n_tokens": tokens, **columns})


def table(metrics: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The cross-entropies of all sets and models, one row each."""
    return pd.DataFrame(
        [
            {"set": name, "model": model, **values[model], "n_tokens": values["n_tokens"], "n_rows": values["n_rows"]}
            for name, values in metrics.items()
            for model in ("base", "reference", "policy")
        ]
    )
