"""From scored answers to preference pairs that say where they come from. Imports no torch."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from prefdag.pairs.encoding import PAIRS_SCHEMA
from prefdag.runtime.artifacts import read_table, write_json

if TYPE_CHECKING:
    from prefdag.rounds.plan import JudgePlan
    from prefdag.rounds.votes import Couple, Vote

log = logging.getLogger(__name__)

# A pair, and how it came about: enough to find both answers in the round's samples.
ROUND_SCHEMA = pa.schema(
    [
        *PAIRS_SCHEMA,
        pa.field("round", pa.int64()),
        pa.field("prompt_id", pa.string()),
        pa.field("policy", pa.string()),  # SHA-256 of the policy that answered
        pa.field("sampler", pa.string()),  # JSON
        pa.field("seed", pa.int64()),
        pa.field("judge", pa.string()),  # JSON, as in params.yaml
        pa.field("decided_by", pa.string()),  # the check or principle that decided; null if several did together
        *(pa.field(f"{side}_sample", pa.int64()) for side in ("chosen", "rejected")),  # numbers of the answers
        *(pa.field(f"{side}_score", pa.float64()) for side in ("chosen", "rejected")),
        *(pa.field(f"{side}_scores", pa.list_(pa.float64())) for side in ("chosen", "rejected")),  # of each judge
        *(pa.field(f"{side}_tokens", pa.int64()) for side in ("chosen", "rejected")),  # without the stop token
    ]
)


def couples(
    texts: Sequence[str], scores: Sequence[float], plan: "JudgePlan", generator: np.random.Generator
) -> list[tuple[int, int]]:
    """The pairs (chosen, rejected) of the answers to one prompt, by number.

    An answer without a score, or with the text of an earlier one, is left out. So are pairs of equal scores.
    """
    kept = [i for i, text in enumerate(texts) if not math.isnan(scores[i]) and text not in texts[:i]]

    def apart(chosen: int, rejected: int) -> bool:
        margin = scores[chosen] - scores[rejected]
        return margin > 0 and margin >= plan.min_margin

    if plan.pairs == "all":
        return [couple for couple in permutations(kept, 2) if apart(*couple)]
    best = max(kept, key=lambda i: scores[i], default=-1)
    others = [i for i in kept if apart(best, i)]
    if not others:
        return []
    if plan.pairs == "best_random":
        return [(best, int(generator.choice(others)))]
    return [(best, min(others, key=lambda i: scores[i]))]


def pair_table(
    answers: pd.DataFrame,
    votes: "Mapping[Couple, Vote]",
    plan: "JudgePlan",
    made: Mapping[str, Any],
    judge: Mapping[str, Any] | list[Any],
    stop_id: int,
) -> tuple[pa.Table, dict[str, int]]:
    """The pairs of a round, and counts: prompts judged, those that gave a pair, those that gave none.

    Args:
        answers: as `sampling.sampled` made them, the judged ones, with `prompt`, `score` and `scores`, of each judge.
        votes: of the judge, on rows of `answers`. Those of several judges, or of people, give a pair its preference.
        made: the samples' `round`, `policy`, `sampler` and `seed`.
        judge: the judge as in params.yaml.
        stop_id: ends an answer that was cut. As in data/pairs, it is not scored.
    """
    merged = isinstance(judge, list) or judge["kind"] == "people"
    rows: list[dict[str, Any]] = []
    generator = np.random.default_rng([plan.seed, int(made["round"])])
    groups = list(answers.groupby("id", sort=False))
    for key, group in groups:
        records = group.to_dict("records")
        picked = couples([row["text"] for row in records], [row["score"] for row in records], plan, generator)
        for i, j in picked:
            chosen, rejected = records[i], records[j]
            vote = votes[group.index[min(i, j)], group.index[max(i, j)]]
            preferred = vote.value if i < j else 1 - vote.value
            name = f"{key}/round-{made['round']}/{chosen['sample']}-{rejected['sample']}"
            row = {
                **made,
                "sampler": json.dumps(made["sampler"], sort_keys=True),
                "judge": json.dumps(judge, sort_keys=True),
                "decided_by": vote.decided_by or None,
                "id": name,
                "source": f"data/rounds/{made['round']}/samples/answers.parquet:{key}",
                "prompt_id": key,
                "prompt": chosen["prompt"],
                "prompt_ids": chosen["prompt_ids"],
                "preference": preferred if merged else 1.0,
            }
            for side, answer in (("chosen", chosen), ("rejected", rejected)):
                ids = list(map(int, answer["ids"]))
                row |= {
                    side: answer["text"],
                    f"{side}_ids": ids if answer["ended"] else [*ids, stop_id],
                    f"{side}_truncated": not answer["ended"],
                    **{f"{side}_{column}": answer[column] for column in ("sample", "score", "scores", "tokens")},
                }
            rows.append(row)
    kept = len({row["prompt_id"] for row in rows})
    counts = {"prompts": len(groups), "prompts_kept": kept, "prompts_rejected": len(groups) - kept, "pairs": len(rows)}
    return pa.Table.from_pylist(rows, ROUND_SCHEMA), counts


def carried(earlier: Path, new: pa.Table) -> pa.Table:
    """The pairs of the rounds before, if there are any, and the new ones."""
    path = earlier / "train.parquet"
    return pa.concat_tables([read_table(path), new]) if path.exists() else new


def write(folder: Path, table: pa.Table, answers: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """Write the pairs of all rounds so far, the scored answers of this one, and the summary.

    Without a new pair there is nothing to train on: the file `off` then ends the rounds here.
    """
    write_json(folder / "summary.json", summary)
    answers[["id", "sample", "score", "scores", "tokens", "text"]].to_parquet(folder / "scores.parquet", index=False)
    if summary["pairs"]:
        pq.write_table(table, folder / "train.parquet")
        return
    log.warning(
        "round %d: none of %d prompts gave a pair, so no round is trained from here on: take more rounds.samples, a higher "
        "rounds.temperature, or a lower rounds.min_margin",
        *(summary["round"], summary["prompts"]),
    )
    (folder / "off").touch()
