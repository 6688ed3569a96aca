"""The settings of one round: sampling, judging and training again, after dpo_text."""

from dataclasses import replace
from itertools import combinations
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from prefdag.config.judges import (
    EndpointJudge,
    Judge,
    Judges,
    PeopleJudge,
    RewardModelJudge,
    RoundJudge,
    automatic,
    named,
)
from prefdag.config.samplers import LocalSampler, SamplingServer
from prefdag.config.sources import Source
from prefdag.config.verify import VerifyJudge
from prefdag.runtime.types import Count, NonNegative, Positive, PositiveInt, Shard, Text, strict

RoundNumber = Literal[1, 2, 3]
NUMBERS: tuple[RoundNumber, ...] = get_args(RoundNumber)


@strict
class Computing:
    """How models are run. Results do not depend on it, except for ties within rounding."""

    batch_size: PositiveInt  # answers generated at once
    tokens_per_batch: PositiveInt  # of scoring
    shard: Shard  # of sampling and scoring; dpo_text.shard is that of the training


@strict
class PromptSource:
    """Prompts from files of their own."""

    source: Source
    count: PositiveInt  # of one round


@strict
class Sampling:
    """How answers are sampled, to training prompts and to validation prompts."""

    # Of the train split, or of a source; other ones in every round. And at most as many validation prompts
    prompts: Annotated[
        Annotated[PositiveInt, Tag("<number>")] | Annotated[PromptSource, Tag("<mapping>")],
        Discriminator(lambda value: "<number>" if isinstance(value, int) else "<mapping>"),
    ]
    samples: Annotated[int, Field(ge=2)]  # answers to each prompt
    max_new_tokens: PositiveInt
    temperature: Positive
    top_p: Annotated[float, Field(gt=0, le=1)]
    seed: Count  # of prompts, samples and whatever else is drawn


@strict
class ServedPolicy(SamplingServer):
    """It serves the policy before the round."""

    model: Text  # the name under which it does


@strict
class Sampler:
    """Where the answers to training prompts are sampled; those to validation prompts are always sampled in this process."""

    sampler: Annotated[LocalSampler | ServedPolicy, Field(discriminator="kind")]


@strict
class Select:
    """Which of the sampled prompts make pairs: all, or `budget` of them."""

    by: Literal["all", "random", "uncertainty", "disagreement"]  # of the policy before the round; between judges
    budget: PositiveInt | None

    @model_validator(mode="after")
    def _used(self) -> Self:
        if (self.by == "all") != (self.budget is None):
            raise ValueError(f"by '{self.by}' {'does not use' if self.by == 'all' else 'needs a'} budget")
        return self


@strict
class Pairing:
    """How answers become pairs."""

    judge: Judges  # makes the pairs; several, as a list: their votes are merged
    pairs: Literal["best_worst", "best_random", "all"]
    min_margin: NonNegative  # the scores of a pair differ by at least this
    select: Select

    @model_validator(mode="after")
    def _several(self) -> Self:
        if self.select.by == "disagreement" and len(automatic(self.judge)) < 2:
            raise ValueError("select.by 'disagreement' is between several judges who are no people; list two in judge")
        return self


@strict
class Continuing:
    """How training goes on, with the settings of dpo_text."""

    train_on: Literal["all", "new"]  # the pairs of all rounds so far, or of this one
    start: Literal["previous", "first"]  # the policy before the round, or models/reference
    reference: Literal["first", "previous"]  # models/reference, or the policy before the round


@strict
class Stopping:
    """After which results no further round follows."""

    stopping_judge: Judge | None  # null: no judge stops the rounds
    stop_below: Annotated[
        float, Field(ge=0, le=1)
    ]  # win rate against the policy before the round, on validation prompts
    kl_budget: Positive  # nats per response, from models/reference


@strict
class Round(Sampling, Sampler, Pairing, Continuing, Stopping, Computing):
    """All settings of one round."""

    @model_validator(mode="after")
    def _two_judges(self) -> Self:
        """A judge that also makes the pairs would find that every round succeeds."""
        makers = {name: identity(judge) for name, judge in named(self.judge).items()}
        if self.stopping_judge is not None and identity(self.stopping_judge) in makers.values():
            raise ValueError("stopping_judge is the judge that makes the pairs; choose another one, or null")
        for one, other in combinations(makers, 2):
            if makers[one] == makers[other]:
                raise ValueError(f"{other} is the same judge as {one}, and would vote twice; remove it")
        return self


def identity(judge: RoundJudge) -> Any:
    """What tells one judge from another: not how it is asked, nor by which principles."""
    match judge:
        case RewardModelJudge(source=source):
            return source
        case EndpointJudge(url=url, model=model):
            return url, model
        case PeopleJudge():
            return "people"
        case VerifyJudge(checks=checks, combine=combine):
            return [replace(check, name=None) for check in checks], combine
    return judge
