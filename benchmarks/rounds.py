"""Rounds of DPO on the policy's own answers beside their controls, and prompts selected by uncertainty beside random ones.

    python -m benchmarks.rounds run FOLDER WORK    under an hour on one core; continues where it was stopped
    python -m benchmarks.rounds table              the results as the tables of docs/rounds.md

FOLDER is a run of the pipeline on the default data: data/pairs, data/validated, models/reference and models/dpo_text are read.
WORK keeps samples, models and answers. All arms start at models/dpo_text, and have the same training prompts within a seed and
nearly the same number of optimiser steps. A seed draws the prompts, the samples and the order of the rows. A learning rate is
the one of `RATES` that follows most instructions on the validation prompts, with the first seed. The test prompts, whose topics
are in no training prompt, are answered once by each policy, at the end.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.harness import run_or_table
from benchmarks.round_arms import ARMS, AT_ONCE, COMPARED, SFT, START, TUNED, Study
from prefdag.runtime.artifacts import read_json, write_json, writing
from prefdag.stats import intervals
from prefdag.stats.paired import shares

RESULTS = Path(__file__).with_name("rounds.csv")
SEEDS = (0, 1, 2)
RATES = (3e-4, 1e-3)
VAL_SAMPLES = 4  # answers to each validation prompt
KL_PROMPTS = 32  # whose answers the KL is measured on
KINDS = {  # of instructions, by words in them
    "sentences": "exactly",
    "at most": "at most",
    "at least": "at least",
    "question": "question",
    "commas": "commas",
    "word": "use the word",
}


# The measurement


def answer(study: Study, policy: Path, split: str, samples: int, name: str) -> pd.DataFrame:
    """The policy's greedy answer and `samples` sampled ones to each prompt of a split, kept in WORK.

    Their decoding is that of answer_text. `followed`: the instruction is; `kind`: of the instruction.
    """
    from prefdag.pairs.turns import read_dialogues
    from prefdag.rounds.sampling import prompts_of
    from prefdag.text.evaluation.instructions import found
    from prefdag.text.generation import answers
    from prefdag.text.generation.decoding import continuations
    from prefdag.text.scoring.rows import read_split
    from prefdag.text.sharded import load_both

    path = study.work / "answers" / f"{name}, {split}.parquet"
    if path.exists():
        return pd.read_parquet(path)
    own, tokenizer = study.params.answer_text, study.tokenizer
    prompts = prompts_of(read_split(study.pairs, split))
    written = continuations(
        load_both(study.reference, policy, shard="none", packed=False).policy,
        prompts["prompt_ids"].tolist(),
        [[None, *([own.seed, number, *key.encode()] for number in range(samples))] for key in prompts["id"]],
        sampling=(own.temperature, own.top_p),
        max_new_tokens=own.max_new_tokens,
        stop_ids=tokenizer.stop_ids,
        batch_size=max(1, AT_ONCE // (1 + samples)),
        name=f"{name}, {split}",
    )
    dialogues = read_dialogues(study.messages, prompts["id"])
    asked = [str(dialogues[key].messages[-1]["content"]) for key in prompts["id"]]
    parts = []
    for number in range(1 + samples):
        ids = [each[number] for each in written]
        texts = [tokenizer.decode(each[:-1] if each[-1] in tokenizer.stop_ids else each) for each in ids]
        rows = answers.rows(prompts, texts, ids, tokenizer.stop_ids)
        stated = [list(found(question, text)) for question, text in zip(asked, texts, strict=True)]
        parts.append(
            rows.assign(
                decoding="sampled" if number else "greedy",
                asked=asked,
                followed=[all(each.followed for each in some) for some in stated],
                kind=[kind_of(some[0].text) for some in stated],
            )
        )
    table = pd.concat(parts, ignore_index=True)
    with writing(path) as temporary:
        table.to_parquet(temporary, index=False)
    return table


def kind_of(instruction: str) -> str:
    return next(kind for kind, words in KINDS.items() if words in instruction.lower())


def kl_to_start(study: Study, policy: Path, answers: pd.DataFrame, name: str) -> float:
    """KL to the first policy on the policy's sampled answers to some prompts, nats per response; kept in WORK."""
    from prefdag.rounds.comparing import kl_to_reference
    from prefdag.text.model import ReferenceAndPolicy
    from prefdag.text.sharded import load_both

    path = study.work / "answers" / f"{name}, kl.json"
    if not path.exists():
        start, after = (load_both(study.reference, each, shard="none").policy for each in (study.start, policy))
        some = answers[answers["decoding"] == "sampled"][:KL_PROMPTS]
        found = kl_to_reference(ReferenceAndPolicy(start, after), some, study.params.rounds.tokens_per_batch)
        with writing(path) as temporary:
            write_json(temporary, found)
    return float(read_json(path)["kl_to_reference"])


def best_rate(study: Study, arm: str) -> float:
    """The learning rate with which the arm's policy follows most instructions on the validation prompts."""
    followed = {}
    for rate in RATES:
        policy = ARMS[arm](study, SEEDS[0], rate)[-1]
        rows = answer(study, policy, "val", VAL_SAMPLES, policy.name)
        followed[rate] = float(rows["followed"].mean())
        print(f"{arm}, learning rate {rate:g}: {followed[rate]:.3f} of {len(rows)} validation answers", flush=True)
    return max(RATES, key=lambda rate: followed[rate])


def run(study: Study) -> None:
    """Run everything that WORK does not have yet, then write the results."""
    every = {(START, 0): answer(study, study.start, "test", 1, START)}
    about: dict[tuple[str, int], dict[str, Any]] = {(START, 0): {}}
    rates = {sft: best_rate(study, arm) for sft, arm in TUNED.items()}
    for arm, seed in order():
        rate = rates[arm in SFT]
        policies = ARMS[arm](study, seed, rate)
        name = policies[-1].name
        every[arm, seed] = answer(study, policies[-1], "test", 1, name)
        counts = [read_json(policy / "trained.json") for policy in policies]
        about[arm, seed] = {
            "learning_rate": rate,
            "rows": sum(each["rows"] for each in counts),
            "steps": sum(each["steps"] for each in counts),
            "kl": kl_to_start(study, policies[-1], every[arm, seed], name),
        }
        pd.DataFrame(results(every, about)).to_csv(RESULTS, index=False, float_format="%.6g", lineterminator="\n")


def order() -> Iterator[tuple[str, int]]:
    """The arms of all seeds, those of selection last."""
    for some in (list(ARMS)[:4], list(ARMS)[4:]):
        for seed in SEEDS:
            for arm in some:
                yield arm, seed


# The results


def results(
    every: Mapping[tuple[str, int], pd.DataFrame], about: Mapping[tuple[str, int], Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """One row per arm, seed and decoding with what was measured, `against` empty, and one per comparison.

    Seed "all" has the means over the seeds, answers being averaged prompt by prompt; its intervals are over prompts.
    """
    arms = list(dict.fromkeys(arm for arm, _ in every))
    for decoding in ("greedy", "sampled"):
        tables = {
            key: table[table["decoding"] == decoding].set_index("id", drop=False).sort_index()
            for key, table in every.items()
        }
        seeds = {arm: [seed for own, seed in tables if own == arm] for arm in arms}
        followed = {arm: np.mean([tables[arm, seed]["followed"] for seed in seeds[arm]], axis=0) for arm in arms}
        for arm in arms:
            rows = [{**about[arm, seed], **measured(tables[arm, seed])} for seed in seeds[arm]]
            common = {"arm": arm, "decoding": decoding, "against": "", "n": len(followed[arm])}
            for seed, row in zip(seeds[arm], rows, strict=True):
                low, high = intervals.share(tables[arm, seed]["followed"].astype(float).tolist())
                yield {**common, "seed": seed, **row, "followed_low": low, "followed_high": high}
            low, high = intervals.share(followed[arm].tolist())
            means = pd.DataFrame(rows).mean().to_dict()
            yield {**common, "seed": "all", **means, "followed_low": low, "followed_high": high}
        for arm, other in [(arm, START) for arm in arms if arm != START] + COMPARED:
            if not {arm, other} <= set(arms):
                continue
            common = {"arm": arm, "decoding": decoding, "against": other, "n": len(followed[arm])}
            for seed in seeds[arm]:
                own, theirs = tables[arm, seed], tables.get((other, 0 if other == START else seed))
                if theirs is not None:
                    found = shares(own["followed"].to_numpy(), theirs["followed"].to_numpy())
                    yield {**common, "seed": seed, **{name: found[name] for name in DIFFERENCE}}
            low, high = intervals.ratio_difference(followed[arm], followed[other], np.ones(len(followed[arm])))
            value = float((followed[arm] - followed[other]).mean())
            yield {**common, "seed": "all", **dict(zip(DIFFERENCE, (value, low, high), strict=True))}


DIFFERENCE = ("difference", "difference_low", "difference_high")


def measured(answers: pd.DataFrame) -> dict[str, float]:
    """Means over answers, distinct-2, and the share of instructions followed by kind."""
    from prefdag.text.generation.answers import distinct, ids_without_end

    means = {name: float(answers[name].astype(float).mean()) for name in ("followed", "tokens", "ended", "repetition")}
    kinds = answers.groupby("kind")["followed"].mean()
    by_kind = {f"followed_{kind}": float(kinds.get(kind, math.nan)) for kind in KINDS}
    return {**means, "distinct": distinct(ids_without_end(answers)) or 0.0, **by_kind}


def table() -> str:
    """The tables of docs/rounds.md, in Markdown."""
    every = pd.read_csv(RESULTS, keep_default_na=False, na_values=[""], dtype={"seed": str})
    every["against"] = every["against"].fillna("")
    return "\n\n".join([followed_table(every), other_table(every), compared_table(every)])


def followed_table(every: pd.DataFrame) -> str:
    """Instructions followed: the mean over seeds, their range, and the difference from the start."""
    lines = ["| trained on | rows, steps | greedy | from the start | sampled | from the start |", "|---" * 6 + "|"]
    for arm in every["arm"].unique():
        own = every[(every["arm"] == arm) & (every["against"] == "")]
        counts = own[own["seed"] == "all"].iloc[0]
        cells = [arm, "" if arm == START else f"{counts['rows']:.0f}, {counts['steps']:.0f}"]
        for decoding in ("greedy", "sampled"):
            rows = own[own["decoding"] == decoding].set_index("seed")["followed"]
            each = rows.drop("all")
            cells.append(f"{rows['all']:.0%}" + (f" ({each.min():.0%} to {each.max():.0%})" if len(each) > 1 else ""))
            cells.append("" if arm == START else difference(every, arm, START, decoding))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def other_table(every: pd.DataFrame) -> str:
    """What else changed, in sampled answers: means over seeds."""
    shown = {"tokens": ".1f", "ended": ".0%", "repetition": ".1%", "distinct": ".2f", "kl": ".2f"}
    kinds = [f"followed_{kind}" for kind in KINDS]
    headings = ["trained on", "tokens", "ended", "repetition", "distinct-2", "KL", *KINDS]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    rows = every[(every["seed"] == "all") & (every["against"] == "") & (every["decoding"] == "sampled")]
    for _, row in rows.iterrows():
        cells = [row["arm"], *(format(row[name], form) for name, form in shown.items())]
        cells += [format(row[name], ".0%") for name in kinds]
        lines.append(f"| {' | '.join(cells).replace('nan', '')} |")
    return "\n".join(lines)


def compared_table(every: pd.DataFrame) -> str:
    """Differences between arms."""
    lines = ["| difference | greedy | sampled |", "|---|---|---|"]
    for arm, other in COMPARED:
        if ((every["arm"] == arm) & (every["against"] == other)).any():
            cells = [difference(every, arm, other, decoding) for decoding in ("greedy", "sampled")]
            lines.append(f"| {arm} − {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(every: pd.DataFrame, arm: str, other: str, decoding: str) -> str:
    """In percentage points, with its interval."""
    mine = every[(every["arm"] == arm) & (every["against"] == other) & (every["decoding"] == decoding)]
    value, low, high = (100 * mine[mine["seed"] == "all"].iloc[0][name] for name in DIFFERENCE)
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    run_or_table(__doc__ or "", lambda folder, work: run(Study.of(folder, work)), table, "folder", "work")
