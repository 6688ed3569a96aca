"""What base model, reference and policy make of held-out pairs and of eval sets."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from prefdag.dpo.preference import Scores
from prefdag.runtime.progress import progress
from prefdag.stats.intervals import ratio_difference
from prefdag.stats.rewards import reward_metrics, unpaired_reward_metrics
from prefdag.text.scoring import vocabulary
from prefdag.text.scoring.logps import Pair, pair_scores
from prefdag.text.scoring.packing import Group, batches, pack
from prefdag.text.scoring.states import head, response_states

if TYPE_CHECKING:
    from prefdag.pairs.tokenizer import ChatTokenizer
    from prefdag.text.model import ReferenceAndPolicy


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


class Heldout(NamedTuple):
    """What policy and reference say of held-out pairs.

    The KL is KL(policy || reference) over the whole vocabulary, in nats a token, averaged over the scored tokens of all
    responses: exact where it is taken, though the contexts are the data's, not the policy's own.
    """

    scores: Scores  # float64 on the CPU; they say where a response is absent (`has_chosen`, `has_rejected`)
    kl: float
    logratios: list[np.ndarray]  # of each response that there is, in the order of the groups: log pi/pi_ref, (tokens,)


@torch.no_grad()
def score_heldout(models: "ReferenceAndPolicy", pairs: Sequence[Pair], max_tokens: int) -> Heldout:
    """Held-out pairs under both models: each runs once over them."""
    parts: list[dict[str, Tensor]] = []
    logratios: list[np.ndarray] = []
    kl, scored = 0.0, 0
    device = next(models.policy.parameters()).device
    with progress(len(pairs), "row", "heldout, reference and policy") as bar:
        for rows in batches([pair.group for pair in pairs], max_tokens):
            batch = [pairs[i] for i in rows]
            packed = pack([pair.group for pair in batch]).to(device)
            reference, policy = ((response_states(model, packed), head(model)) for model in models)
            found = vocabulary.logps_and_kl(*policy, *reference, packed.targets)
            kl += float(found.kl.double().sum())
            scored += len(packed.targets)
            said = pair_scores(batch, packed, found.policy)
            parts.append(said | {f"ref_{name}": t for name, t in pair_scores(batch, packed, found.reference).items()})
            lengths = [len(response) for pair in batch for response in pair.group.responses]
            of_tokens = (found.policy - found.reference).cpu().numpy()
            logratios += np.split(of_tokens, np.cumsum(lengths)[:-1])
            bar.update(len(rows))
    scores = {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}
    for side in ("chosen", "rejected"):
        scores[f"has_{side}"] = torch.tensor([getattr(pair, side) is not None for pair in pairs]).double()
    return Heldout(cast(Scores, scores), kl / scored, logratios)


def tokens_table(
    ids: Iterable[str], pairs: Sequence[Pair], logratios: Sequence[np.ndarray], tokenizer: "ChatTokenizer"
) -> pd.DataFrame:
    """A row a response: `id`, `side`, and a list each of its scored `tokens`, their `texts` and their `logratios`.

    The texts of a response join to what its tokens decode to (`ChatTokenizer.texts`). Its log-ratios, float32, in nats, sum
    to the log-ratio of the response, hence to its implicit reward over beta (arXiv:2305.18290, eq. 5; by token
    arXiv:2404.12358).

    Args:
        ids: of the pairs.
        logratios: from `score_heldout`.
    """
    responses = [
        (name, side, list(getattr(pair, side)))
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


def heldout_table(scores: Scores, rewards: tuple[Tensor, Tensor]) -> pd.DataFrame:
    """A row a pair: implicit rewards (see `Preference.rewards`), their margin, and log-probabilities of either model.

    NaN where a row has no such response.
    """
    chosen, rejected = rewards
    has_chosen, has_rejected = scores["has_chosen"].bool(), scores["has_rejected"].bool()
    columns = {
        "reward_chosen": (chosen, has_chosen),
        "reward_rejected": (rejected, has_rejected),
        "margin": (chosen - rejected, has_chosen & has_rejected),
        "policy_chosen_logps": (scores["chosen"], has_chosen),
        "policy_rejected_logps": (scores["rejected"], has_rejected),
        "ref_chosen_logps": (scores["ref_chosen"], has_chosen),
        "ref_rejected_logps": (scores["ref_rejected"], has_rejected),
    }
    return pd.DataFrame({name: values.where(has, torch.nan) for name, (values, has) in columns.items()})


def heldout_metrics(
    scores: Scores,
    rewards: tuple[Tensor, Tensor],
    preference: np.ndarray,
    kl: float,
    logps: Mapping[str, np.ndarray],
    chosen: Sequence[Group],
) -> dict[str, Any]:
    """Implicit rewards with intervals, KL, and cross-entropies of the chosen responses.

    Of pairs, their number is `n_pairs`; of unpaired responses, `n_chosen` and `n_rejected`.

    Args:
        scores: from `score_heldout`.
        rewards: from `Preference.rewards`.
        preference: the probability that the chosen response is preferred, (rows,).
        logps: from `chosen_logps`.
        chosen: prompts with their chosen responses, in the same order.
    """
    has_chosen, has_rejected = scores["has_chosen"].bool(), scores["has_rejected"].bool()
    found: dict[str, Any]
    if bool((has_chosen & has_rejected).all()):
        longer = scores["chosen_tokens"] - scores["rejected_tokens"]
        found = {"n_pairs": len(has_chosen), "rewards": reward_metrics(*rewards, torch.tensor(preference), longer)}
    else:
        of_chosen, of_rejected = rewards[0][has_chosen], rewards[1][has_rejected]
        found = {"n_chosen": len(of_chosen), "n_rejected": len(of_rejected)}
        found["rewards"] = unpaired_reward_metrics(of_chosen, of_rejected)
    return {**found, "kl": kl, **set_metrics(logps, chosen)}


def chosen_logps(scores: Scores, base: np.ndarray) -> dict[str, np.ndarray]:
    """Log-probabilities of the chosen responses that there are by model, (responses,); `base` are the base model's."""
    has = scores["has_chosen"].bool()
    return {"base": base, "reference": scores["ref_chosen"][has].numpy(), "policy": scores["chosen"][has].numpy()}


def set_metrics(logps: Mapping[str, np.ndarray], groups: Sequence[Group]) -> dict[str, Any]:
    """Cross-entropy and perplexity of one set under each model, and by how much they differ.

    `differences` has for "A_B" the cross-entropy of A minus that of B, with its paired bootstrap interval over rows.

    Args:
        logps: by model, base, reference, policy: log-probabilities of the groups' one response each, (groups,).
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
    """A row a scored response: `set`, `row` (its source), `n_tokens`, and its log-probability under each model, `*_logps`."""
    columns = {f"{model}_logps": values.astype(float) for model, values in logps.items()}
    tokens = [len(group.responses[0]) for group in groups]
    return pd.DataFrame({"set": name, "row": list(sources), "n_tokens": tokens, **columns})


def table(metrics: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The cross-entropies of all sets and models, a row each."""
    return pd.DataFrame(
        [
            {"set": name, "model": model, **values[model], "n_tokens": values["n_tokens"], "n_rows": values["n_rows"]}
            for name, values in metrics.items()
            for model in ("base", "reference", "policy")
        ]
    )
