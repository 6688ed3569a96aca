"""The policy of a round beside the one before it, on validation prompts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from prefdag.stats import intervals
from prefdag.text.evaluation.judge import OUTCOMES, win_rates
from prefdag.text.evaluation.metrics import compare_heldout
from prefdag.text.generation.answers import distinct, ids_without_end
from prefdag.text.scoring.logps import Pair

if TYPE_CHECKING:
    from prefdag.text.model import ReferenceAndPolicy

MEANS = ("tokens", "repetition", "ended", "refused")


def kl_to_reference(models: "ReferenceAndPolicy", answers: pd.DataFrame, max_tokens: int) -> float:
    """KL(policy || reference), nats per response, estimated on the policy's own answers.

    The sum over an answer's tokens of the KL between the two next-token distributions. Its mean is the KL of whole answers
    (cut as they are) if they were sampled with temperature 1 and top_p 1, and close to it otherwise.
    """
    pairs = [Pair(list(row["prompt_ids"]), list(row["ids"]), None) for row in answers.to_dict("records")]
    tokens = sum(len(pair.chosen or ()) for pair in pairs)
    return compare_heldout(models, pairs, max_tokens).kl * tokens / len(pairs)


def means(answers: pd.DataFrame) -> dict[str, float | None]:
    """Means over answers, with 95% intervals, and the share of different bigrams (see `prefdag.text.generation.answers`)."""
    found: dict[str, float | None] = {}
    for name in MEANS:
        values = answers[name].astype(float).tolist()
        low, high = (intervals.mean if name in ("tokens", "repetition") else intervals.share)(values)
        found |= {name: float(np.mean(values)), f"{name}_low": low, f"{name}_high": high}
    return found | {"distinct": distinct(ids_without_end(answers))}


def rates(contests: pd.DataFrame, verdicts: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Win rates of the policy after the round, by judge, and the share of contests on which two judges agree, with its n."""
    found: dict[str, Any] = {name: win_rates(contests, each)["sampled"] for name, each in verdicts.items()}
    if len(verdicts) == 2:
        one, other = (each["outcome"].to_numpy() for each in verdicts.values())
        read = np.isin(one, list(OUTCOMES)) & np.isin(other, list(OUTCOMES))
        same = (one == other)[read].tolist()
        low, high = intervals.share(same)
        found["agreement"] = {
            "n": len(same),
            "agreement": float(np.mean(same)),
            "agreement_low": low,
            "agreement_high": high,
        }
    return found
