"""The judges of judge_text and rounds."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from prefdag.config.endpoint import EndpointUrl
from prefdag.config.sources import ModelSource, PathSource
from prefdag.config.verify import VerifyJudge
from prefdag.runtime.types import Count, Positive, PositiveInt, Text, shape, strict


@strict
class ImplicitJudge:
    """The implicit reward of the pipeline's own policy, which is biased towards that policy."""

    kind: Literal["implicit"]


@strict
class RewardModelJudge:
    """A sequence-classification model, in safetensors, that gives a conversation one score."""

    kind: Literal["reward_model"]
    # trained: by the stage reward_model
    source: Annotated[
        Annotated[Literal["trained"], Tag("<name>")] | Annotated[ModelSource, Tag("<mapping>")], Discriminator(shape)
    ]


@strict
class EndpointJudge:
    """A chat model behind an OpenAI-compatible server. Its key comes from the environment only."""

    kind: Literal["endpoint"]
    url: EndpointUrl
    model: Text
    max_tokens: PositiveInt  # for a verdict and its reasons
    timeout: Positive  # seconds for a whole reply
    parallel: PositiveInt = 4  # contests asked about at once
    principles: PathSource | None = None  # a file; null: which answer is better on the whole
    combine: Literal["in_order", "mean"] = (
        "in_order"  # the first principle that tells the answers apart decides, or all do
    )


@strict
class PeopleJudge:
    """People, of rounds only: they label what `dvc repro` wrote, and it goes on when enough of them did."""

    kind: Literal["people"]
    labels: Count = 1  # people who must have labelled each comparison; 0: go on with the labels that there are


Judge = Annotated[ImplicitJudge | RewardModelJudge | EndpointJudge | VerifyJudge, Field(discriminator="kind")]


def _one_or_several(value: Any) -> str:
    """`check` leaves these tags out of its messages."""
    return "<list>" if isinstance(value, list) else "<mapping>"


RoundJudge = Annotated[
    ImplicitJudge | RewardModelJudge | EndpointJudge | VerifyJudge | PeopleJudge, Field(discriminator="kind")
]
# One judge, or several whose votes are merged.
Judges = Annotated[
    Annotated[RoundJudge, Tag("<mapping>")] | Annotated[list[RoundJudge], Field(min_length=2), Tag("<list>")],
    Discriminator(_one_or_several),
]


def named(judges: Judges, key: str = "judge") -> dict[str, RoundJudge]:
    """Judges by their keys in the section: `judge`, or `judge.0`, `judge.1`, ..."""
    return {f"{key}.{i}": each for i, each in enumerate(judges)} if isinstance(judges, list) else {key: judges}


def is_trained(judge: RoundJudge | None) -> bool:
    """Whether the judge is the reward model that the stage reward_model trains."""
    return isinstance(judge, RewardModelJudge) and judge.source == "trained"


def automatic(judges: Judges) -> dict[str, Judge]:
    """Those that are no people, by their keys: what a program asks by itself."""
    return {name: each for name, each in named(judges).items() if not isinstance(each, PeopleJudge)}


def people(judges: Judges) -> PeopleJudge | None:
    """The people among them, if there are any."""
    return next((each for each in named(judges).values() if isinstance(each, PeopleJudge)), None)
