"""Which of two answers is the better one, by rewards; and what a judge's verdicts come to: the win rate.

A contest is a prompt's two answers under one decoding, the reference's and the policy's. A judge turns contests into a
verdict each: `outcome` "win" (the policy's is better), "tie", "loss" or "unread", beside what it went by. The same answer
twice is a tie, and no judge is asked.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from prefdag.runtime.errors import DataError, ParamsError, PrefdagError
from prefdag.runtime.process import process
from prefdag.runtime.progress import progress
from prefdag.stats.intervals import paired_difference
from prefdag.stats.rewards import length_controlled
from prefdag.text.evaluation.metrics import score_heldout
from prefdag.text.scoring.logps import Pair

if TYPE_CHECKING:
    from prefdag.config.sources import ModelSource
    from prefdag.dpo.preference import Preference
    from prefdag.pairs.tokenizer import Messages
    from prefdag.text.model import ReferenceAndPolicy

OUTCOMES = {"win": 1.0, "tie": 0.5, "loss": 0.0}
KEYS = ["id", "decoding"]


def contests(answers: pd.DataFrame, messages: Mapping[str, "Messages"]) -> pd.DataFrame:
    """A row a prompt and decoding: `id`, `decoding`, `prompt_ids`, `messages`, and `text`, `ids`, `tokens` of either model.

    Args:
        answers: as stage answer_text wrote them.
        messages: the dialogue of each prompt's id, whole.
    """
    columns = ["text", "ids", "tokens"]
    reference, policy = (answers[answers["model"] == model] for model in ("reference", "policy"))
    both = reference[[*KEYS, "prompt_ids", *columns]].merge(
        policy[[*KEYS, *columns]], on=KEYS, suffixes=("_reference", "_policy"), validate="one_to_one"
    )
    return both.assign(messages=both["id"].map(messages))


def by_rewards(pairs: pd.DataFrame, reference: np.ndarray, policy: np.ndarray) -> pd.DataFrame:
    """Verdicts of a judge with a number for each answer: the higher one wins.

    Args:
        reference, policy: rewards of the contests' answers, (contests,).
    """
    # Equal answers can score unlike each other in the last bits.
    same = (pairs["text_reference"] == pairs["text_policy"]).to_numpy()
    sign = np.where(same, 0, np.sign(policy - reference))
    outcome = np.select([sign > 0, sign < 0], ["win", "loss"], "tie")
    return pairs[KEYS].assign(outcome=outcome, reward_reference=reference, reward_policy=policy)


def implicit(
    pairs: pd.DataFrame, models: "ReferenceAndPolicy", preference: "Preference", max_tokens: int
) -> pd.DataFrame:
    """Verdicts of the implicit reward that the policy was trained by, as in training: summed over tokens unless the loss
    takes the mean (arXiv:2305.18290, eq. 5; what it leaves out depends on the prompt alone).

    Partial by construction: a policy's own answers are those that it has made likelier.
    """
    rows = [
        Pair(list(prompt), list(policy), list(reference))
        for prompt, policy, reference in zip(
            pairs["prompt_ids"], pairs["ids_policy"], pairs["ids_reference"], strict=True
        )
    ]
    scores = score_heldout(models, rows, max_tokens).scores
    policy, reference = preference.rewards(scores)  # in the places of chosen and rejected
    return by_rewards(pairs, reference.numpy(), policy.numpy())


def fetch_reward_model(source: "ModelSource", into: Path) -> Path:
    """The folder of a reward model, fetched into the scratch folder `into` unless it is there. Raises `SourceError`."""
    from prefdag.runtime.artifacts import writing
    from prefdag.sources.fetching import fetch

    if not into.is_dir():
        with writing(into) as folder:
            fetch(source, folder, "judge_text.judge.source")
    return into


@torch.no_grad()
def reward_model(pairs: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Verdicts of a sequence-classification model with one score, of the dialogue and an answer in its own chat template.

    Raises:
        ParamsError: the folder holds no such model, or one whose head has no weights.
        DataError: a dialogue is longer than the model's positions.
    """
    model, tokenizer = _load_reward_model(folder)
    window = getattr(model.config, "max_position_embeddings", None)

    def score(messages: "Messages", answer: str, key: str) -> float:
        # By row, not by batch: with one row there is no padding for a head to mistake for the end.
        dialogue = [*map(dict, messages), {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(dialogue, return_tensors="pt", return_dict=True)["input_ids"]
        if window and ids.shape[1] > window:
            raise DataError(
                f"data/validated/pairs.parquet: {key}: {ids.shape[1]} tokens to judge, and the reward model of "
                f"judge_text.judge has {window} positions; take another one"
            )
        return float(model(input_ids=ids.to(model.device)).logits.float().squeeze())

    found: dict[str, list[float]] = {"reference": [], "policy": []}
    with progress(2 * len(pairs), "answer", "reward model") as bar:
        for row in pairs.to_dict("records"):
            for side, rewards in found.items():
                rewards.append(score(row["messages"], row[f"text_{side}"], row["id"]))
                bar.update()
    return by_rewards(pairs, np.array(found["reference"]), np.array(found["policy"]))


def _load_reward_model(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer, from safetensors and JSON alone. Raises `ParamsError`."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    where, safe = "params.yaml: judge_text.judge.source", {"local_files_only": True, "trust_remote_code": False}
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **safe
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    except (OSError, ValueError, KeyError) as error:
        raise ParamsError(f"{where}: no reward model in safetensors ({_short(error)}); take another one") from None
    if absent := sorted(info["missing_keys"]):
        raise ParamsError(
            f"{where}: the model has no trained {absent[0]}; take one with a sequence-classification head"
        )
    if model.config.num_labels != 1:
        raise ParamsError(f"{where}: the model has {model.config.num_labels} scores; a reward model has one")
    if not tokenizer.chat_template:
        raise ParamsError(f"{where}: the tokenizer has no chat template; take a reward model of dialogues")
    if model.config.pad_token_id is None:  # the head looks for the last token that is no padding
        model.config.pad_token_id = -1
    return model.eval().to(process().device), tokenizer


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def win_rates(pairs: pd.DataFrame, verdicts: pd.DataFrame) -> dict[str, Any]:
    """Of each decoding: `win_rate`, (wins + ties / 2) / n with a 95% interval, the counts, and `length_controlled`.

    Wins minus losses over n is a difference of two shares of the same rows, whose score interval is Tango's; half of it and
    one half is the win rate. `n` are the contests with a verdict, `unread` those without. The length-controlled rate is the
    one if the policy's answer were the longer one as often as the shorter one (`rewards.length_controlled`), where both occur.

    Raises:
        PrefdagError: no verdict of a decoding can be read.
    """
    longer = (pairs["tokens_policy"] - pairs["tokens_reference"]).to_numpy()
    found = {}
    for decoding in sorted(set(verdicts["decoding"])):
        mine = (verdicts["decoding"] == decoding).to_numpy()
        outcome = verdicts["outcome"].to_numpy()[mine]
        counts = {name: int((outcome == name).sum()) for name in (*OUTCOMES, "unread")}
        n = sum(counts[name] for name in OUTCOMES)
        if not n:
            raise PrefdagError(
                f"params.yaml: judge_text.judge: none of {len(outcome)} verdicts on {decoding} answers can be read; "
                "take another model, or raise max_tokens"
            )
        low, high = paired_difference(counts["win"], counts["loss"], n)
        read = outcome != "unread"
        right = torch.tensor([OUTCOMES[name] for name in outcome[read]], dtype=torch.float64)
        found[decoding] = {
            "n": n,
            "wins": counts["win"],
            "ties": counts["tie"],
            "losses": counts["loss"],
            "unread": counts["unread"],
            "win_rate": (counts["win"] + counts["tie"] / 2) / n,
            "win_rate_low": (1 + low) / 2,
            "win_rate_high": (1 + high) / 2,
            **length_controlled(right, torch.tensor(longer[mine][read])),
        }
    return found
