"""Answers in batches and their statistics: by hand, against answers one by one, and against the model itself."""

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
    """A tiny model in float64, where rounding causes no ties."""
    tiny: nn.Module = lm.load(write_model(tmp_path_factory.mktemp("model"), request.param), packed=False).double()
    return tiny


def answers_of(model: nn.Module, prompts: list[list[int]] = PROMPTS, **changes: Any) -> list[list[int]]:
    options: dict[str, Any] = {"max_new_tokens": 7, "stop_ids": (EOS,), "batch_size": 4, "name": "test"}
    return continuations(model, prompts, **(options | changes))


SAMPLING: Any = pytest.mark.parametrize("sampling", [None, (1.0, 1.0), (0.8, 0.7)])


@SAMPLING
def test_answers_in_batches_equal_answers_one_by_one(sampling: Any, model: nn.Module) -> None:
    together = answers_of(model, batch_size=6, sampling=sampling, seeds=SEEDS)
    assert together == answers_of(model, batch_size=1, sampling=sampling, seeds=SEEDS)
    reversed_answers = answers_of(model, PROMPTS[::-1], batch_size=3, sampling=sampling, seeds=SEEDS[::-1])
    assert together == reversed_answers[::-1]
    assert len(set(map(tuple, together))) > 1


def test_greedy_answers_equal_the_naive_continuation(model: nn.Module) -> None:
    outputs = answers_of(model)
    expected = [continuation(model, prompt, 7, EOS) for prompt in PROMPTS]
    assert [ids[:-1] if ids[-1] == EOS else ids for ids in outputs] == expected
    # With one of its tokens as the EOS, an answer ends there and includes it.
    token = outputs[2][3]
    ended = answers_of(model, stop_ids=(EOS, token))[2]
    assert ended == outputs[2][: outputs[2].index(token) + 1]


@pytest.mark.slow
@pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS)
def test_a_policy_answers_the_same_in_a_batch_and_alone(config: Adapter, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "llama", "llama")
    policy = trainable.add_adapter(lm.load(folder, packed=False), config, 0, "dpo_text.adapter")
    disturb(policy)
    policy.double()
    for sampling in (None, (1.0, 1.0)):
        alone, together = (answers_of(policy, batch_size=size, sampling=sampling, seeds=SEEDS) for size in (1, 6))
        assert alone == together


def test_a_seed_repeats_its_answer_and_another_seed_gives_another(model: nn.Module) -> None:
    first, again = (answers_of(model, sampling=(1.0, 1.0), seeds=SEEDS) for _ in range(2))
    torch.manual_seed(7)  # the process's own generators play no part
    np.random.seed(7)
    assert first == again == answers_of(model, sampling=(1.0, 1.0), seeds=SEEDS)
    assert first != answers_of(model, sampling=(1.0, 1.0), seeds=[[1, i] for i in range(len(PROMPTS))])
    same_prompt = answers_of(model, [PROMPTS[0]] * 4, sampling=(1.0, 1.0), seeds=SEEDS[:4])
    assert len(set(map(tuple, same_prompt))) > 1  # equal prompts with different seeds


def test_generation_settings_of_the_model_folder_are_ignored(model: Any) -> None:
    expected = answers_of(model)
    model.generation_config.update(repetition_penalty=50.0, no_repeat_ngram_size=1, min_new_tokens=7, top_k=1)
    assert answers_of(model) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.75)])
def test_samples_are_distributed_as_the_softmax(temperature: float, top_p: float) -> None:
    """20,000 draws of 5 tokens; a chi-squared statistic with 4 degrees of freedom exceeds 23.5 once in 10,000 times."""
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    n = 20_000
    draw = sampler(temperature, top_p, [[3, i] for i in range(n)])
    tokens = draw(torch.zeros(n, 1, dtype=torch.long), p.log().repeat(n, 1)).argmax(-1)
    expected = p ** (1 / temperature)
    expected[3:] *= top_p == 1.0  # 0.4 + 0.3 + 0.15 is the first sum that reaches 0.75
    expected /= expected.sum()
    counts = tokens.bincount(minlength=5).double()
    assert bool((counts[expected == 0] == 0).all())
    kept = expected > 0
    chi = float(((counts - n * expected)[kept] ** 2 / (n * expected[kept])).sum())
    assert chi < 23.5


def test_the_draws_of_a_row_do_not_depend_on_its_batch() -> None:
    scores = torch.zeros(2, VOCABULARY)
    noise = GumbelNoise([np.random.default_rng([i]) for i in range(2)])
    both = torch.stack([noise(scores, scores) for _ in range(3)])
    alone = GumbelNoise([np.random.default_rng([1])])
    assert torch.equal(both[:, 1:], torch.stack([alone(scores[:1], scores[:1]) for _ in range(3)]))
    assert bool(both.isfinite().all())
    assert not torch.equal(both[0], both[1])


# Statistics


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], 0),
        ([1, 2, 3], 0),
        ([1, 2, 3, 4], 0),
        ([1] * 6, 1 - 1 / 3),  # three runs of four, one of them different
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 - 4 / 5),  # 1234 2341 3412 4123 1234: four of five differ
        ([1, 2, 3, 4, 5, 1, 2, 3], 0),
    ],
)
def test_repetition_by_hand(ids: list[int], expected: float) -> None:
    assert answers.repetition(ids) == pytest.approx(expected)


def test_distinct_by_hand() -> None:
    """12 23 and 12 24: three of four differ. 31, across the two answers, does not count."""
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
def test_refusals_are_recognised_by_their_opening(text: str) -> None:
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
def test_other_answers_are_not_refusals(text: str) -> None:
    assert not answers.refuses(text)


def table_of(policy: list[tuple[str, list[int]]], reference: list[tuple[str, list[int]]]) -> pd.DataFrame:
    prompts = pd.DataFrame({"id": [f"p{i}" for i in range(len(policy))], "decoding": "greedy"})
    return pd.concat(
        answers.rows(prompts.assign(model=name), [text for text, _ in pairs], [ids for _, ids in pairs], (EOS,))
        for name, pairs in (("policy", policy), ("reference", reference))
    )


def test_statistics_by_hand() -> None:
    policy = [("a", [1, 1, 1, 1, 1, EOS]), ("I cannot.", [2, 3]), ("c", [EOS])]
    reference = [("a", [4, 5, EOS]), ("b", [2, 3]), ("d", [6, 7, 8, 9])]
    table = table_of(policy, reference)
    assert table["tokens"].tolist() == [5, 2, 0, 2, 2, 4]  # without the EOS
    assert table["ended"].tolist() == [True, False, True, True, False, False]
    statistics = answers.statistics(table)
    assert statistics["n_prompts"] == 3
    greedy = statistics["greedy"]
    assert greedy["policy"]["tokens"] == pytest.approx((5 + 2 + 0) / 3)
    assert greedy["policy"]["repetition"] == pytest.approx((1 - 1 / 2 + 0 + 0) / 3)  # 1111 twice
    assert greedy["policy"]["refused"] == pytest.approx(1 / 3)
    assert (greedy["policy"]["refused_low"], greedy["policy"]["refused_high"]) == proportion(1, 3)
    assert greedy["policy"]["distinct"] == pytest.approx(2 / (4 + 1))  # 11 four times, and 23 once
    assert greedy["same"] == pytest.approx(1 / 3)
    change = greedy["differences"]
    assert change["tokens"]["difference"] == pytest.approx(((5 - 2) + (2 - 2) + (0 - 4)) / 3)
    # 3, 0 and -4 have the standard error sqrt(37 / 9); Student's t at 97.5% with 2 degrees of freedom is 4.302653.
    assert change["tokens"]["difference_low"] <= -1 / 3 - 4.302652 * (37 / 9) ** 0.5
    assert change["tokens"]["difference_high"] >= -1 / 3 + 4.302652 * (37 / 9) ** 0.5
    assert change["ended"]["difference"] == pytest.approx(1 / 3)
    assert (change["ended"]["difference_low"], change["ended"]["difference_high"]) == paired_difference(1, 0, 3)


def test_the_order_of_rows_does_not_matter() -> None:
    policy: Any = [("a", [1, 2]), ("b", [3, 4, 5, EOS]), ("c", [6])]
    table = table_of(policy, policy[::-1])
    assert answers.statistics(table) == answers.statistics(table.sample(frac=1, random_state=1))
