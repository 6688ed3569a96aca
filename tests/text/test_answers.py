"""Answers by the batch, and what is counted of them: by hand, against answers one by one, and against the model itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from naive_answers import continuation
from tiny_models import ADAPTERS, VOCABULARY, disturb, write_model
from torch import nn

from prefdag.config.adapter import Adapter
from prefdag.stats.intervals import paired_difference, proportion
from prefdag.text import model as lm
from prefdag.text import trainable
from prefdag.text.generation import answers
from prefdag.text.generation.decoding import GumbelNoise, continuations, sampler

EOS = 0
PROMPTS = [[5, 9, 3], [7], [11, 4, 8, 2, 6, 13], [7, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9], [20, 30]]
SEEDS = [[0, i] for i in range(len(PROMPTS))]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A tiny model in float64, where ties within rounding do not happen."""
    found: nn.Module = lm.load(write_model(tmp_path_factory.mktemp("model"), request.param), packed=False).double()
    return found


def say(model: nn.Module, prompts: list[list[int]] = PROMPTS, **changes: Any) -> list[list[int]]:
    options: dict[str, Any] = {"max_new_tokens": 7, "eos_id": EOS, "batch_size": 4, "name": "test"}
    return continuations(model, prompts, **(options | changes))


SAMPLING: Any = pytest.mark.parametrize("sampling", [None, (1.0, 1.0), (0.8, 0.7)])


@SAMPLING
def test_answers_by_the_batch_are_those_one_by_one(sampling: Any, model: nn.Module) -> None:
    together = say(model, batch_size=6, sampling=sampling, seeds=SEEDS)
    assert together == say(model, batch_size=1, sampling=sampling, seeds=SEEDS)
    backwards = say(model, PROMPTS[::-1], batch_size=3, sampling=sampling, seeds=SEEDS[::-1])
    assert together == backwards[::-1]
    assert len(set(map(tuple, together))) > 1


def test_greedy_answers_are_those_of_chat(model: nn.Module) -> None:
    said = say(model)
    expected = [continuation(model, prompt, 7, EOS) for prompt in PROMPTS]
    assert [ids[:-1] if ids[-1] == EOS else ids for ids in said] == expected
    # One of the words that it says, as EOS: the answer ends there, and keeps it.
    word = said[2][3]
    ended = say(model, eos_id=word)[2]
    assert ended == said[2][: said[2].index(word) + 1]


@pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS)
def test_a_policy_answers_by_the_batch_as_alone(config: Adapter, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "llama", "llama")
    policy = trainable.add_adapter(lm.load(folder, packed=False), config, 0, "dpo_text.adapter")
    disturb(policy)
    policy.double()
    for sampling in (None, (1.0, 1.0)):
        one, six = (say(policy, batch_size=size, sampling=sampling, seeds=SEEDS) for size in (1, 6))
        assert one == six


def test_a_seed_says_the_same_again_and_another_one_something_else(model: nn.Module) -> None:
    first, again = (say(model, sampling=(1.0, 1.0), seeds=SEEDS) for _ in range(2))
    torch.manual_seed(7)  # the process's own generator has no part in it
    np.random.seed(7)
    assert first == again == say(model, sampling=(1.0, 1.0), seeds=SEEDS)
    assert first != say(model, sampling=(1.0, 1.0), seeds=[[1, i] for i in range(len(PROMPTS))])
    same = say(model, [PROMPTS[0]] * 4, sampling=(1.0, 1.0), seeds=SEEDS[:4])
    assert len(set(map(tuple, same))) > 1  # prompts alike with seeds of their own


def test_what_the_folder_asks_for_is_left_aside(model: Any) -> None:
    expected = say(model)
    model.generation_config.update(repetition_penalty=50.0, no_repeat_ngram_size=1, min_new_tokens=7, top_k=1)
    assert say(model) == expected


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.75)])
def test_samples_are_distributed_as_the_softmax(temperature: float, top_p: float) -> None:
    """20,000 draws of 5 words; the chi-squared statistic of 4 degrees of freedom exceeds 23.5 once in 10,000."""
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    n = 20_000
    draw = sampler(temperature, top_p, [[3, i] for i in range(n)])
    words = draw(torch.zeros(n, 1, dtype=torch.long), p.log().repeat(n, 1)).argmax(-1)
    expected = p ** (1 / temperature)
    expected[3:] *= top_p == 1.0  # 0.4 + 0.3 + 0.15 is the first sum not below 0.75
    expected /= expected.sum()
    counts = words.bincount(minlength=5).double()
    assert bool((counts[expected == 0] == 0).all())
    kept = expected > 0
    chi = float(((counts - n * expected)[kept] ** 2 / (n * expected[kept])).sum())
    assert chi < 23.5


def test_a_row_draws_the_same_whoever_is_beside_it() -> None:
    scores = torch.zeros(2, VOCABULARY)
    noise = GumbelNoise([np.random.default_rng([i]) for i in range(2)])
    both = torch.stack([noise(scores, scores) for _ in range(3)])
    alone = GumbelNoise([np.random.default_rng([1])])
    assert torch.equal(both[:, 1:], torch.stack([alone(scores[:1], scores[:1]) for _ in range(3)]))
    assert bool(both.isfinite().all())
    assert not torch.equal(both[0], both[1])


# What is counted


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], 0),
        ([1, 2, 3], 0),
        ([1, 2, 3, 4], 0),
        ([1] * 6, 1 - 1 / 3),  # three runs of four, one of them different
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),  # 1234 2341 3412 4123 1234: four of five differ
        ([1, 2, 3, 4, 5, 1, 2, 3], 0),
    ],
)
def test_repetition_by_hand(ids: list[int], expected: float) -> None:
    assert answers.repetition(ids) == pytest.approx(expected)


def test_distinct_by_hand() -> None:
    """12 23 and 12 24: three of four differ; 3 ends one answer and 1 starts the next, which is no run."""
    assert answers.distinct([[1, 2, 3], [1, 2, 4]]) == 3 / 4
    assert answers.distinct([[1], []]) is None


@pytest.mark.parametrize(
    "text",
    [
        "I cannot help with that.",
        "I can’t do this",
        "**I'm sorry, but I can't assist with that.**",
        "“I won't say.”",
        "As a responsible AI language model, I cannot provide advice",
        "Unfortunately, as an AI language model, I don't have the capability to draw.",
        "I apologize, but I cannot provide a translation",
        "I'm really sorry, but as an assistant I am not able to do so",
        "  We are unable\nto say",
    ],
)
def test_refusals_are_told_by_their_opening(text: str) -> None:
    assert answers.refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure! I cannot wait.",
        "I can't wait to see it.",
        "I cannot stress enough how good it is",
        "As an AI language model, I can help you with a plan.",
        "I'm sorry, but these questions have different meanings.",
        "I'm sorry to hear that you're bored.",
        "Unfortunately, the building burnt down.",
        "I cancelled it.",
        "You cannot do that. I cannot help.",
        "Sorry " * 20_000,
        "As an " + "a" * 100_000,
        "I'm sorry, " * 20_000,
    ],
)
def test_what_is_no_refusal(text: str) -> None:
    assert not answers.refuses(text)


def table_of(policy: list[tuple[str, list[int]]], reference: list[tuple[str, list[int]]]) -> pd.DataFrame:
    prompts = pd.DataFrame({"id": [f"p{i}" for i in range(len(policy))], "decoding": "greedy"})
    return pd.concat(
        answers.rows(prompts.assign(model=name), [text for text, _ in said], [ids for _, ids in said], EOS)
        for name, said in (("policy", policy), ("reference", reference))
    )


def test_statistics_by_hand() -> None:
    policy = [("a", [1, 1, 1, 1, 1, EOS]), ("I cannot.", [2, 3]), ("c", [EOS])]
    reference = [("a", [4, 5, EOS]), ("b", [2, 3]), ("d", [6, 7, 8, 9])]
    table = table_of(policy, reference)
    assert table["tokens"].tolist() == [5, 2, 0, 2, 2, 4]  # without the EOS
    assert table["ended"].tolist() == [True, False, True, True, False, False]
    found = answers.statistics(table)
    assert found["n_prompts"] == 3
    greedy = found["greedy"]
    assert greedy["policy"]["tokens"] == pytest.approx(7 / 3)
    assert greedy["policy"]["repetition"] == pytest.approx((1 / 2) / 3)
    assert greedy["policy"]["refused"] == pytest.approx(1 / 3)
    assert (greedy["policy"]["refused_low"], greedy["policy"]["refused_high"]) == proportion(1, 3)
    assert greedy["policy"]["distinct"] == pytest.approx(2 / 5)  # 11 four times, 23
    assert greedy["same"] == pytest.approx(1 / 3)
    change = greedy["differences"]
    assert change["tokens"]["difference"] == pytest.approx((3 + 0 - 4) / 3)
    assert -4 <= change["tokens"]["difference_low"] < -1 / 3 < change["tokens"]["difference_high"] <= 3
    assert change["ended"]["difference"] == pytest.approx(1 / 3)
    assert (change["ended"]["difference_low"], change["ended"]["difference_high"]) == paired_difference(1, 0, 3)


def test_the_order_of_rows_does_not_matter() -> None:
    policy: Any = [("a", [1, 2]), ("b", [3, 4, 5, EOS]), ("c", [6])]
    table = table_of(policy, policy[::-1])
    assert answers.statistics(table) == answers.statistics(table.sample(frac=1, random_state=1))
