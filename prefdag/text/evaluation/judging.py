"""Asks the judges that params.yaml names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from prefdag.config.judges import EndpointJudge, ImplicitJudge, Judge, RewardModelJudge
from prefdag.config.verify import VerifyJudge
from prefdag.lifecycle.launcher import rank
from prefdag.text.endpoint import key_from_environment
from prefdag.text.evaluation import endpoint, judge, verify
from prefdag.text.fetched import fetched
from prefdag.text.sharded import load_both

if TYPE_CHECKING:
    from prefdag.config.judge_text import JudgeText
    from prefdag.config.round import Computing
    from prefdag.dpo.preference import Preference

SHARED = (ImplicitJudge, RewardModelJudge)  # every process takes part; of the others, only the first one asks


class Needs(NamedTuple):
    """What judges need besides the answers."""

    reference: Path
    policy: Path  # its implicit reward is against the reference
    computing: "Computing | JudgeText"
    messages: Path  # rows with the prompts' chosen responses, for checks
    preference: Callable[[], "Preference"]  # imports losses of the user's
    checks: Callable[[], Mapping[str, verify.Function]]  # imports checks of the user's


def verdicts(config: Judge, pairs: pd.DataFrame, needs: Needs, where: str) -> pd.DataFrame:
    """The judge's verdicts on `judge.contests`. Those of a judge that is not `SHARED` only the first process may ask for.

    Args:
        where: the judge's key in params.yaml.
    """
    match config:
        case ImplicitJudge():
            models = load_both(needs.reference, needs.policy, shard=needs.computing.shard)
            return judge.implicit(pairs, models, needs.preference(), needs.computing.tokens_per_batch)
        case RewardModelJudge(source=source):
            return judge.reward_model(pairs, fetched(source, "reward_models", f"{where}.source"), where)
        case EndpointJudge():
            return endpoint.judge(pairs, config, key_from_environment(endpoint.KEY), where)
        case VerifyJudge():
            chosen = judge.chosen_responses(needs.messages, pairs["id"])
            return judge.by_checks(pairs, chosen, config, own_checks(needs), where)


def all_verdicts(
    judges: Mapping[str, Judge], pairs: pd.DataFrame, needs: Needs, section: str
) -> dict[str, pd.DataFrame] | None:
    """The verdicts of each judge by its key in the section. None on all processes but the first."""
    shared = {name: each for name, each in judges.items() if isinstance(each, SHARED)}
    found = {name: verdicts(each, pairs, needs, f"{section}.{name}") for name, each in shared.items()}
    if rank() > 0:
        return None
    return {
        name: found[name] if name in found else verdicts(each, pairs, needs, f"{section}.{name}")
        for name, each in judges.items()
    }


def own_checks(needs: Needs) -> Mapping[str, verify.Function]:
    """The user's checks. Raises `ParamsError` if their file cannot be imported."""
    with verify.checking_own_file():
        return needs.checks()
