"""Answers in batches and their statistics: by hand, against answers one by one, and against the model itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from naive_answers import continuation
from tiny_models import ADAPTERS, disturb, write_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from prefdag.config.adapter import Adapter
from prefdag.lifecycle.errors import NumericError
from prefdag.stats.intervals import paired_difference, proportion
from prefdag.text import model as lm
from prefdag.text import trainable
from prefdag.text.generation import answers, decoding, noise
from prefdag.text.generation.decoding import continuations

EOS = 0
PROMPTS = [[5, 9, 3], [7], [11, 4, 8, 2, 6, 13], [7, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9], [20, 30]]
SEEDS = [[0, i] for i in range(len(PROMPTS))]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A tiny model in float64, where rounding causes no ties."""
    tiny: nn.Module = lm.load(write_model(tmp_path_factory.mktemp("model"), request.param), packed=False).double()
    return tiny


def several_of(model: nn.Module, prompts: list[list[int]], seeds: Any, **changes: Any) -> list[list[list[int]]]:
    options: dict[str, Any] = {"max_new_tokens": 7, "stop_ids": (EOS,), "batch_size": 4, "name": "test"}
    return continuations(model, prompts, seeds, **(options | changes))


def answers_of(
    model: nn.Module,
    prompts: list[list[int]] = PROMPTS,
    sampling: tuple[float, float] | None = None,
    seeds: Any = SEEDS,
    **changes: Any,
) -> list[list[int]]:
    """One answer to each prompt; greedy ones without `sampling`."""
    if sampling is None:
        return [answer for (answer,) in several_of(model, prompts, [[None]] * len(prompts), **changes)]
    own = [[seed] for seed in seeds]
    return [answer for (answer,) in several_of(model, prompts, own, sampling=sampling, **changes)]


SAMPLING: Any = pytest.mark.parametrize("sampling", [None, (1.0, 1.0), (0.8, 0.7)])


@pytest.mark.slow
@SAMPLING
def test_answers_in_batches_equal_answers_one_by_one(sampling: Any, model: nn.Module) -> None:
    together = answers_of(model, batch_size=6, sampling=sampling, seeds=SEEDS)
    assert together == answers_of(model, batch_size=1, sampling=sampling, seeds=SEEDS)
    reversed_answers = answers_of(model, PROMPTS[::-1], batch_size=3, sampling=sampling, seeds=SEEDS[::-1])
    assert together == reversed_answers[::-1]
    assert len(set(map(tuple, together))) > 1


@pytest.mark.slow
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


@pytest.mark.slow
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


def generated(model: Any, prompts: list[list[int]] = PROMPTS, max_new_tokens: int = 7) -> list[list[int]]:
    """The greedy answers of transformers' `generate` in one batch, up to their EOS."""
    width = max(map(len, prompts))
    output = model.generate(
        input_ids=torch.tensor([[EOS] * (width - len(ids)) + ids for ids in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in output[:, width:].tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_answers_equal_those_of_generate_in_the_same_batch(kind: str, config: Adapter, tmp_path: Path) -> None:
    policy: Any = trainable.add_adapter(
        lm.load(write_model(tmp_path / kind, kind), packed=False), config, 0, "dpo_text.adapter"
    )
    disturb(policy)
    policy.double()
    assert answers_of(policy, batch_size=6) == generated(policy)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_a_policy_without_its_adapter_answers_as_its_reference(kind: str, tmp_path: Path) -> None:
    reference = lm.load(write_model(tmp_path / "model", "llama"), packed=False).double()
    expected = answers_of(reference)
    policy: Any = trainable.add_adapter(reference, ADAPTERS[kind], 0, "dpo_text.adapter")
    disturb(policy)
    policy.double()
    assert answers_of(lm.Unadapted(policy)) == expected != answers_of(policy)


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
# By `_batch`: a tied output layer; windows that the prompts and answers outgrow; soft caps; learned positions.
COMMON: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 5},
    "gemma2": {"sliding_window": 4, "attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}
# By `generate`: positions from the mask alone; state-space models and a hybrid; a model without a cache; Phi-3 drops its cache
# and reads everything again when it outgrows its first context.
SPECIAL: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "mamba": {"state_size": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "phi3": {
        "pad_token_id": EOS,
        "original_max_position_embeddings": 12,
        "max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 12,
        },
    },
}


def random_model(kind: str, options: dict[str, Any]) -> Any:
    """In float32: with padding, BLOOM is not a number in float64."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | options))).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.3)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*COMMON, *SPECIAL])
def test_greedy_answers_of_other_architectures_equal_those_of_generate(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(kind, (COMMON | SPECIAL)[kind])
    options: dict[str, Any] = {"batch_size": 6, "max_new_tokens": 12}  # Phi-3's positions depend on the batch
    expected = generated(model, max_new_tokens=12)
    monkeypatch.setattr(decoding, "_batch_by_generate" if kind in COMMON else "_batch", None)
    answers = answers_of(model, **options)
    assert answers == expected
    assert len(set(map(tuple, answers))) > 3
    assert max(map(len, answers)) == 12
    # Several answers of one prompt, greedy ones and samples, in every order.
    seeds: Any = [[[i], None, [i, 1]] for i in range(len(PROMPTS))]
    together = several_of(model, PROMPTS, seeds, sampling=(0.9, 0.9), **options)
    assert [each[1] for each in together] == expected
    alone = [answers_of(model, PROMPTS, (0.9, 0.9), [own[n] for own in seeds], **options) for n in (0, 2)]
    assert [[each[0], each[2]] for each in together] == [list(each) for each in zip(*alone, strict=True)]
    assert all(each[0] != each[2] for each in together)


def test_the_loop_and_generate_give_the_same_answers(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: Any = [[None, [0, i], [1, i], None][i % 3 :] for i in range(len(PROMPTS))]
    by_loop = several_of(model, PROMPTS, seeds, sampling=(0.9, 0.8))
    monkeypatch.setattr(decoding, "_is_common", lambda _: False)
    monkeypatch.setattr(decoding, "_batch", None)
    assert several_of(model, PROMPTS, seeds, sampling=(0.9, 0.8)) == by_loop


def test_greedy_answers_in_bfloat16_are_likeliest_up_to_rounding(tmp_path: Path) -> None:
    model: Any = lm.load(write_model(tmp_path / "model", "llama"), "bfloat16", packed=False)
    for prompt, ids in zip(PROMPTS, answers_of(model, batch_size=6), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()
        behind = logits.amax(-1) - logits.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        assert float(behind.max()) < 0.05 * float(logits.std())


@pytest.mark.slow
@SAMPLING
def test_the_smallest_requests(sampling: Any, model: nn.Module) -> None:
    assert several_of(model, [], []) == []
    whole = answers_of(model, sampling=sampling)
    first = [ids[0] for ids in whole]
    assert answers_of(model, sampling=sampling, max_new_tokens=1) == [[token] for token in first]
    # Answers that all end with their first token, and one prompt without an answer.
    assert answers_of(model, sampling=sampling, stop_ids=(EOS, *first)) == [[token] for token in first]
    seeds: Any = [[], [None], [None, None]]
    greedy = answers_of(model)
    assert several_of(model, PROMPTS[:3], seeds) == [[], [greedy[1]], [greedy[2]] * 2]
    assert several_of(model, PROMPTS[:2], [[], []]) == [[], []]


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_a_model_whose_logits_are_no_numbers_is_refused(kind: str) -> None:
    model = random_model(kind, (COMMON | SPECIAL)[kind])
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 0] = torch.nan
    for sampling in (None, (1.0, 0.9)):
        with pytest.raises(NumericError, match="not finite"):
            answers_of(model, sampling=sampling)


def test_answers_that_end_leave_the_batch_and_the_others_stay_the_same(model: nn.Module) -> None:
    whole = answers_of(model, batch_size=6)
    token = whole[2][1]  # ends some answers early
    rows: list[int] = []

    def count(module: Any, args: Any, inputs: dict[str, Any]) -> None:
        rows.append(len(inputs["input_ids"]))

    with model.register_forward_pre_hook(count, with_kwargs=True):
        ended = answers_of(model, stop_ids=(EOS, token), batch_size=6)
    assert ended == [ids[: ids.index(token) + 1] if token in ids else ids for ids in whole]
    assert rows == [6] + [sum(len(ids) > step for ids in ended) for step in range(1, len(rows))]
    assert rows[-1] < 6


@pytest.mark.slow
def test_several_answers_equal_single_ones_and_read_their_prompt_once(model: nn.Module) -> None:
    sampling = (0.9, 0.9)
    seeds: Any = [[None, [0, i], [1, i], [2, i]][: 1 + i % 4] for i in range(len(PROMPTS))]
    read: list[int] = []

    def count(module: Any, args: Any, inputs: dict[str, Any]) -> None:
        read.append(inputs["input_ids"].numel())

    with model.register_forward_pre_hook(count, with_kwargs=True):
        together = several_of(model, PROMPTS, seeds, sampling=sampling, batch_size=6)
    assert read[0] == len(PROMPTS) * max(map(len, PROMPTS))
    assert sum(read[1:]) == sum(len(ids) - 1 for each in together for ids in each)
    assert [ids for each in together for ids in each] == [
        several_of(model, [prompt], [[seed]], sampling=sampling)[0][0]
        for prompt, own in zip(PROMPTS, seeds, strict=True)
        for seed in own
    ]


# Noise


def keys(*seeds: list[int]) -> torch.Tensor:
    return torch.tensor([noise.key_of(seed) for seed in seeds])


def test_splitmix_equals_the_published_numbers() -> None:
    """The first numbers for the seed 1234567, as in the generator's test vectors."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    numbers = noise.splitmix(torch.tensor(1234567), torch.arange(4))
    assert [number % 2**64 for number in numbers.tolist()] == expected


def test_the_noise_depends_on_seed_step_and_token_alone() -> None:
    tokens = torch.arange(1000)
    of_three = noise.exponentials(keys([0, 1], [0, 2], [1, 1]), 5, tokens)
    alone = noise.exponentials(keys([0, 2]), 5, tokens[[7, 500]])
    assert torch.equal(of_three[1, [7, 500]], alone[0])
    assert not torch.equal(of_three[0], of_three[1])
    assert not torch.equal(of_three[0], of_three[2])
    assert not torch.equal(of_three[0], noise.exponentials(keys([0, 1]), 6, tokens)[0])
    assert len(of_three.unique()) > 2990


def test_the_noise_is_exponential_down_to_rare_values() -> None:
    draws = noise.exponentials(keys([0], [1]), 0, torch.arange(1_000_000)).flatten().double()
    assert bool((draws > 0).all())
    assert bool(draws.isfinite().all())
    assert abs(float(draws.mean()) - 1) < 0.004  # five standard errors, here and below
    for rare in (0.5, 1e-2, 1e-5):
        expected = len(draws) * -np.expm1(-rare)
        assert abs(int((draws < rare).sum()) - expected) < 5 * expected**0.5


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.75), (0.5, 0.75)])
def test_samples_are_distributed_as_the_softmax(temperature: float, top_p: float) -> None:
    """20,000 draws of 5 tokens; a chi-squared statistic with 4 degrees of freedom exceeds 23.5 once in 10,000 times."""
    p = torch.tensor([0.1, 0.3, 0.05, 0.4, 0.15])
    n = 20_000
    seeds = keys(*([3, i] for i in range(n)))
    tokens = noise.draw(p.log().repeat(n, 1), temperature, top_p, seeds, step=2)
    expected = p.double() ** (1 / temperature)
    expected /= expected.sum()
    order = expected.argsort(descending=True)
    outside = expected[order].cumsum(0) - expected[order] >= top_p
    expected[order[outside]] = 0
    expected /= expected.sum()
    counts = tokens.bincount(minlength=5).double()
    assert bool((counts[expected == 0] == 0).all())
    kept = expected > 0
    chi = float(((counts - n * expected)[kept] ** 2 / (n * expected[kept])).sum())
    assert chi < 23.5


@pytest.mark.slow
def test_answers_follow_the_models_probabilities(model: Any) -> None:
    """The second tokens of 4,000 answers to one prompt, by the first token, with the model's own softmax as the oracle."""
    n = 4_000
    (answers,) = several_of(model, [PROMPTS[0]], [[[i] for i in range(n)]], max_new_tokens=2)
    first = torch.tensor([ids[0] for ids in answers])
    with torch.no_grad():
        p = model(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
        token = int(p.argmax())
        second = torch.tensor([ids[1] for ids in answers if ids[0] == token and token != EOS])
        q = model(torch.tensor([[*PROMPTS[0], token]])).logits[0, -1].softmax(-1)
    for drawn, probabilities in ((first, p), (second, q)):
        expected = probabilities * len(drawn)
        deviations = (drawn.bincount(minlength=len(p)) - expected) / expected.sqrt()
        assert float(deviations.square().sum()) < len(p) + 5 * (2 * len(p)) ** 0.5


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_the_nucleus_equals_that_of_a_full_sort(top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    p = (torch.randn(5, 3000, generator=generator) * torch.tensor([[0.0], [0.5], [1], [3], [9]])).softmax(-1)
    ordered = p.sort(descending=True, stable=True).values
    needed = ordered.double().cumsum(-1) - ordered < top_p
    expected = ordered * (ordered >= ordered.where(needed, torch.inf).amin(-1, keepdim=True))
    for first in (2, 256, 3000):
        kept, tokens = noise.nucleus(p, top_p, first)
        assert torch.equal(p.gather(-1, tokens)[kept > 0], kept[kept > 0])
        # Rounding decides whether the last token of equal ones belongs to it.
        assert bool(((kept > 0).sum(-1) - (expected > 0).sum(-1)).abs().le(1).all())
        assert float((kept.sum(-1) - expected.sum(-1)).abs().max()) < 1e-3


@pytest.mark.slow
def test_draws_among_ties_do_not_depend_on_the_other_rows() -> None:
    """As in bfloat16: many tokens are equally likely, also at the end of the nucleus. A flat row has the widest nucleus."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(400, 3000, generator=generator)).round()
    seeds = keys(*([i] for i in range(len(logits) + 1)))
    alone = noise.draw(logits, 0.5, 0.6, seeds[:-1], 0)
    with_flat = noise.draw(torch.cat([logits, torch.zeros(1, 3000)]), 0.5, 0.6, seeds, 0)
    assert torch.equal(alone, with_flat[:-1])


@pytest.mark.slow
def test_nearly_equal_models_draw_nearly_always_the_same_token() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 500, generator=generator)
    seeds = keys(*([i] for i in range(len(logits))))
    near = logits + 0.01 * torch.randn(logits.shape, generator=generator)
    drawn = [noise.draw(each, 0.7, 0.95, seeds, 0) for each in (logits, logits, near)]
    assert torch.equal(drawn[0], drawn[1])
    assert 0.97 < float((drawn[0] == drawn[2]).double().mean()) < 1


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
