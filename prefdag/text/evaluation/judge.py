"""Judges that compare answers by rewards, and the win rate of any judge's verdicts.

A contest is a prompt with two answers under one decoding, the reference's and the policy's. A judge returns one verdict per
contest: `outcome` "win" (the policy's answer is better), "tie", "loss" or "unread", with the evidence. Two equal answers are a
tie; no judge is asked.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from prefdag.distributed.process import process
from prefdag.distributed.sharing import shared_out
from prefdag.lifecycle.errors import DataError, ParamsError, PrefdagError
from prefdag.lifecycle.progress import progress
from prefdag.runtime.artifacts import read_table
from prefdag.sources.model_files import adapter_fault
from prefdag.stats import intervals
from prefdag.stats.intervals import paired_difference
from prefdag.stats.rewards import length_controlled
from prefdag.text.evaluation import verify
from prefdag.text.evaluation.metrics import compare_heldout
from prefdag.text.scoring.logps import Pair

if TYPE_CHECKING:
    from prefdag.config.verify import VerifyJudge
    from prefdag.dpo.preference import Preference
    from prefdag.pairs.turns import Asked, Messages
    from prefdag.text.model import ReferenceAndPolicy
    from prefdag.tokenizer.template import Tools

OUTCOMES = {"win": 1.0, "tie": 0.5, "loss": 0.0}
KEYS = ["id", "decoding"]


def contests(reference: pd.DataFrame, policy: pd.DataFrame, dialogues: Mapping[str, "Asked"]) -> pd.DataFrame:
    """One row per contest: a row of `reference` against the row of `policy` in the same place, which answers the same prompt.

    Columns `id`, `decoding`, `prompt_ids`, `messages`, `tools`, and each one's `text`, `ids`, `tokens`.

    Args:
        reference, policy: answers, as `answers.rows` made them, with their `decoding`.
        dialogues: the whole dialogue by prompt id.
    """
    one, other = (table.reset_index(drop=True) for table in (reference, policy))
    assert one[KEYS].equals(other[KEYS])
    columns = ["text", "ids", "tokens"]
    sides = (one[columns].add_suffix("_reference"), other[columns].add_suffix("_policy"))
    both = pd.concat([one[[*KEYS, "prompt_ids"]], *sides], axis=1)
    asked: list[Any] = [dialogues[name] for name in both["id"]]
    offered = pd.Series([each.tools for each in asked], index=both.index, dtype=object)
    return both.assign(messages=pd.Series([each.messages for each in asked], index=both.index), tools=offered)


def against_each(answers: pd.DataFrame, dialogues: Mapping[str, "Asked"]) -> pd.DataFrame:
    """The contests of the policy with every other model that answered, with that model's name as `against`.

    Args:
        answers: with `model`: reference, policy, and control if there is one.
    """
    by_model = {str(model): rows for model, rows in answers.groupby("model", sort=False)}
    policy = by_model.pop("policy")
    each = [contests(rows, policy, dialogues).assign(against=model) for model, rows in by_model.items()]
    return pd.concat(each, ignore_index=True)


def by_rewards(pairs: pd.DataFrame, reference: np.ndarray, policy: np.ndarray) -> pd.DataFrame:
    """Verdicts of a judge that gives each answer a reward: the higher one wins. A contest without rewards, NaN, is unread.

    Args:
        reference, policy: rewards of the contests' answers, (contests,).
    """
    # Rewards of equal answers can differ in the last bits.
    same = (pairs["text_reference"] == pairs["text_policy"]).to_numpy()
    sign = np.where(same, 0, np.sign(policy - reference))
    outcome = np.select([sign > 0, sign < 0, np.isnan(sign)], ["win", "loss", "unread"], "tie")
    return pairs[KEYS].assign(outcome=outcome, reward_reference=reference, reward_policy=policy)


def implicit(
    pairs: pd.DataFrame, models: "ReferenceAndPolicy", preference: "Preference", max_tokens: int
) -> pd.DataFrame:
    """Verdicts of the policy's implicit reward, as in training: summed over tokens, unless the loss takes means
    (arXiv:2305.18290, eq. 5; the omitted term depends on the prompt only).

    Biased by construction: a policy favours its own answers, whose probability it has increased.
    """
    rows = [
        Pair(list(prompt), list(policy), list(reference))
        for prompt, policy, reference in zip(
            pairs["prompt_ids"], pairs["ids_policy"], pairs["ids_reference"], strict=True
        )
    ]
    batch = compare_heldout(models, rows, max_tokens).batch
    policy, reference = preference.rewards(batch)  # in the places of chosen and rejected
    return by_rewards(pairs, reference.numpy(), policy.numpy())


def chosen_responses(path: Path, ids: Iterable[str]) -> dict[str, str | None]:
    """The chosen responses of some validated rows, by id: what a check may compare an answer with."""
    rows = read_table(path, columns=["id", "chosen"], filters=[("id", "in", set(ids))]).to_pylist()
    return {row["id"]: row["chosen"] for row in rows}


def by_checks(
    pairs: pd.DataFrame,
    chosen: Mapping[str, str | None],
    config: "VerifyJudge",
    own: Mapping[str, verify.Function],
    where: str = "judge_text.judge",
) -> pd.DataFrame:
    """Verdicts of a program, with `decided_by`, a check's name, and a reason for each answer.

    Args:
        chosen: the chosen response by prompt id.
        own: the user's functions.
        where: the judge's key in params.yaml.

    Raises:
        ParamsError: as `verify.scorer`.
        DataError: no prompt has what the checks need.
    """
    scores = verify.scorer(config, own, f"params.yaml: {where}.checks")
    rows = []
    with progress(len(pairs), "contest", "verify") as bar:
        for row in pairs.to_dict("records"):
            question = verify.Question(row["id"], row["messages"], chosen[row["id"]])
            each = [scores(question, row[f"text_{role}"]) for role in ("reference", "policy")]
            rows.append((*verify.rewards(config, *each), *(verify.reason(config, found) for found in each)))
            bar.update()
    columns = ["reference", "policy", "decided_by", "reason_reference", "reason_policy"]
    table = pd.DataFrame(rows, columns=columns)
    check_comparable(table["policy"].to_numpy(), where)
    evidence = table[columns[2:]].set_index(pairs.index)
    return by_rewards(pairs, table["reference"].to_numpy(), table["policy"].to_numpy()).join(evidence)


def check_comparable(scores: np.ndarray, where: str) -> None:
    """Raises `DataError` if a program could score none of its answers: no prompt has anything to compare with."""
    if np.isnan(scores).all():
        raise DataError(
            f"data/validated/pairs.parquet: {where}: of the answered prompts, none has what a check needs (number: a number in "
            "the chosen response; instructions: one in the prompt); choose other checks, or other data"
        )


@torch.no_grad()
def reward_model(pairs: pd.DataFrame, folder: Path, where: str = "judge_text.judge") -> pd.DataFrame:
    """Verdicts of a sequence-classification model with one label, on dialogue and answer in its own chat template.

    Raises:
        ParamsError: the folder holds no such model, or one whose head has no weights.
        DataError: a dialogue has more tokens than the model has positions.
    """
    model, tokenizer = _load_reward_model(folder, f"params.yaml: {where}.source")
    window = getattr(model.config, "max_position_embeddings", None)

    def reward(messages: "Messages", tools: "Tools", answer: str, key: str) -> float:
        # One row at a time: without padding, the head cannot mistake it for the end.
        dialogue = [*map(dict, messages), {"role": "assistant", "content": answer}]
        options = {"return_tensors": "pt", "return_dict": True}
        ids = tokenizer.apply_chat_template(dialogue, tools=tools, **options)["input_ids"]
        if window and ids.shape[1] > window:
            raise DataError(
                f"data/validated/pairs.parquet: {key}: {ids.shape[1]} tokens to judge, but the reward model of "
                f"{where} has {window} positions; choose another one"
            )
        return float(model(input_ids=ids.to(model.device)).logits.float().squeeze())

    def rewards(rows: Sequence[Mapping[Any, Any]]) -> list[list[float]]:
        return [
            [reward(row["messages"], row["tools"], row[f"text_{role}"], row["id"]) for role in ("reference", "policy")]
            for row in rows
        ]

    each = [[row] for row in pairs.to_dict("records")]
    table = np.concatenate(shared_out(each, rewards, "contest", "reward model"))
    return by_rewards(pairs, table[:, 0], table[:, 1])


def _load_reward_model(folder: Path, where: str) -> tuple[Any, Any]:
    """Model and tokenizer, from safetensors and JSON only. Raises `ParamsError`."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    # transformers would look for the adapter's base model, or load the adapter with the model
    if fault := adapter_fault(path.name for path in folder.iterdir()):
        raise ParamsError(f"{where}: {fault}")
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **safe
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    except (OSError, ValueError, KeyError) as error:
        raise ParamsError(f"{where}: no reward model in safetensors ({_short(error)}); choose another one") from None
    if absent := sorted(info["missing_keys"]):
        raise ParamsError(
            f"{where}: the model has no trained {absent[0]}; choose one with a sequence-classification head"
        )
    if model.config.num_labels != 1:
        raise ParamsError(f"{where}: the model has {model.config.num_labels} labels; a reward model has one")
    template = tokenizer.chat_template
    if not (template.get("default") if isinstance(template, dict) else template):
        raise ParamsError(f"{where}: the tokenizer has no default chat template; choose a reward model for dialogues")
    if model.config.pad_token_id is None:  # the head looks for the last token that is not padding
        model.config.pad_token_id = -1
    return model.eval().to(process().device), tokenizer


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def win_rates(pairs: pd.DataFrame, verdicts: pd.DataFrame, where: str = "judge_text.judge") -> dict[str, Any]:
    """Per decoding: `win_rate`, (wins + ties / 2) / n with a 95% interval, the counts, and `length_controlled`.

    (wins - losses) / n is a difference of two shares of the same rows, with Tango's score interval; the win rate is half of it
    plus one half. `n` counts the contests with a verdict, `unread` those without. The length-controlled rate weighs contests
    as if the policy's answer were longer as often as shorter (`rewards.length_controlled`); it needs both kinds. A program adds
    `scores`.

    Args:
        where: the judge's key in params.yaml.

    Raises:
        PrefdagError: a decoding has no readable verdict.
    """
    longer = (pairs["tokens_policy"] - pairs["tokens_reference"]).to_numpy()
    rates = {}
    for decoding in sorted(set(verdicts["decoding"])):
        mine = (verdicts["decoding"] == decoding).to_numpy()
        outcome = verdicts["outcome"].to_numpy()[mine]
        counts = {name: int((outcome == name).sum()) for name in (*OUTCOMES, "unread")}
        n = sum(counts[name] for name in OUTCOMES)
        if not n:
            raise PrefdagError(
                f"params.yaml: {where}: none of {len(outcome)} verdicts on {decoding} answers can be read; "
                "choose another model, or raise max_tokens"
            )
        low, high = paired_difference(counts["win"], counts["loss"], n)
        read = outcome != "unread"
        right = torch.tensor([OUTCOMES[name] for name in outcome[read]], dtype=torch.float64)
        rates[decoding] = {
            "n": n,
            "wins": counts["win"],
            "ties": counts["tie"],
            "losses": counts["loss"],
            "unread": counts["unread"],
            "win_rate": (counts["win"] + counts["tie"] / 2) / n,
            "win_rate_low": (1 + low) / 2,
            "win_rate_high": (1 + high) / 2,
            **length_controlled(right, torch.tensor(longer[mine][read])),
            **(scores(verdicts[mine]) if "reason_policy" in verdicts else {}),
        }
    return rates


def scores(verdicts: pd.DataFrame) -> dict[str, float]:
    """The mean score by a program of both models' answers, `score_policy` and `score_other`, each with a 95% interval."""
    found: dict[str, float] = {}
    for name, column in (("policy", "reward_policy"), ("other", "reward_reference")):
        values = verdicts[column].dropna().tolist()
        shares = all(0 <= value <= 1 for value in values)
        low, high = intervals.share(values) if shares else intervals.mean(values)
        found |= {f"score_{name}": float(np.mean(values)), f"score_{name}_low": low, f"score_{name}_high": high}
    return found
