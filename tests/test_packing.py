"""Packed rows against the plain way: one prompt and one response at a time, through transformers' own attention."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import random_groups, write_both
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from prefdag.text import model as lm
from prefdag.text.logps import pair_logps, response_logps, score, token_logps
from prefdag.text.packing import Group, Segment, batches, pack

KINDS = ["llama", "gpt2"]
ids = st.lists(st.integers(0, 63), min_size=1, max_size=5)
groups_of_any_shape = st.lists(st.builds(Group, ids, st.lists(ids, min_size=1, max_size=3).map(tuple)), max_size=6)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_both(tmp_path_factory.mktemp("models"))


def naive(model: PreTrainedModel, groups: list[Group]) -> Tensor:
    """log pi(response | prompt) of every response, computed alone: (responses,)."""
    logps = []
    for prompt, responses in groups:
        for response in responses:
            predicted = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
            logps.append(sum(predicted[len(prompt) - 1 + i, token] for i, token in enumerate(response)))
    return torch.stack(logps)


def test_the_worked_example() -> None:
    packed = pack([Group([1, 2], ([3, 4], [5])), Group([6], ([7, 8],))])
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 1, 2]
    assert packed.predictors.tolist() == [1, 2, 1, 5, 6]
    assert packed.targets.tolist() == [3, 4, 5, 7, 8]
    assert packed.owners.tolist() == [0, 0, 1, 2, 2]
    assert packed.segments == (Segment(0, 2, (2, 1)), Segment(5, 1, (2,)))
    assert packed.n_responses == 3
    assert packed.input_ids.dtype == torch.int64


@given(groups=groups_of_any_shape.filter(bool))
def test_a_pack_holds_every_response_behind_its_prompt(groups: list[Group]) -> None:
    """Read back from the pack: the targets of an owner are its response, and each predictor stands one position before."""
    packed = pack(groups)
    responses = [response for group in groups for response in group.responses]
    assert [packed.targets[packed.owners == i].tolist() for i in range(packed.n_responses)] == responses
    lengths = [len(group.prompt) for group in groups for _ in group.responses]
    for i, (prompt, response) in enumerate(zip(lengths, responses, strict=True)):
        before = packed.position_ids[packed.predictors[packed.owners == i]].tolist()
        assert before == list(range(prompt - 1, prompt - 1 + len(response)))
    assert len(packed.input_ids) == sum(group.n_tokens for group in groups)


@pytest.mark.parametrize("group", [Group([], ([1],)), Group([1], ([],)), Group([1], ([2], []))])
def test_empty_prompts_and_responses_are_refused(group: Group) -> None:
    with pytest.raises(ValueError, match="need a token"):
        pack([Group([1], ([2],)), group])


@given(groups=groups_of_any_shape, limit=st.integers(1, 40))
def test_batches_hold_each_row_once_in_order_within_the_limit(groups: list[Group], limit: int) -> None:
    found = list(batches(groups, limit))
    assert [row for batch in found for row in batch] == list(range(len(groups)))
    sizes = [sum(groups[row].n_tokens for row in batch) for batch in found]
    assert all(size <= limit or len(batch) == 1 for size, batch in zip(sizes, found, strict=True))
    # No batch could have taken the next one's first row: otherwise batches of one would pass as well.
    for batch, size, after in zip(found, sizes, found[1:], strict=False):
        assert batch
        assert size + groups[after[0]].n_tokens > limit


@pytest.mark.parametrize("responses", [1, 2, None])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_naive_values_and_gradients(models: dict[str, Path], kind: str, responses: int | None) -> None:
    """In double precision but for the logits, which are float32 by contract."""
    groups = random_groups(8, responses, longest=9)
    model = lm.load(models[kind]).double()
    plain = AutoModelForCausalLM.from_pretrained(models[kind], attn_implementation="eager").double().eval()
    logps, expected = response_logps(model, pack(groups)), naive(plain, groups)
    torch.testing.assert_close(logps.double(), expected, rtol=1e-6, atol=1e-5)
    # Unequal weights: a gradient that reaches the wrong response shows.
    weight = torch.linspace(-1, 2, len(expected), dtype=torch.float64)
    (logps.double() * weight).sum().backward()
    (expected * weight).sum().backward()
    for (name, p), twin in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert twin.grad is not None
        torch.testing.assert_close(p.grad, twin.grad, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_naive_in_single_precision(models: dict[str, Path], kind: str) -> None:
    groups = random_groups(8, None, seed=1, longest=9)
    plain = AutoModelForCausalLM.from_pretrained(models[kind], attn_implementation="sdpa").eval()
    with torch.no_grad():
        logps = response_logps(lm.load(models[kind]), pack(groups))
        torch.testing.assert_close(logps, naive(plain, groups), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_do_not_depend_on_companions_or_order(models: dict[str, Path], kind: str) -> None:
    """Alone, together, backwards, and in batches of any size: the same to float32's 1e-4 nats."""
    model = lm.load(models[kind])
    groups = random_groups(9, 2, seed=2)
    with torch.no_grad():
        alone = torch.cat([response_logps(model, pack([group])) for group in groups]).view(-1, 2)
        together = response_logps(model, pack(groups)).view(-1, 2)
        backwards = response_logps(model, pack(groups[::-1])).view(-1, 2).flip(0)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(backwards, alone, rtol=1e-5, atol=1e-4)
    for limit in (1, 30, 1000):
        scored = torch.from_numpy(score(model, groups, limit, "test"))
        assert scored.dtype == torch.float64
        torch.testing.assert_close(scored.view(-1, 2).float(), alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_a_response_and_its_prompt_reaches_it(models: dict[str, Path], kind: str) -> None:
    """Other tokens in the siblings and in the groups around, of the same lengths: not a bit of the response changes."""
    model = lm.load(models[kind])
    before, after = Group([1, 2], ([3],)), Group([4], ([5, 6],))
    first = [before, Group([7, 8], ([9, 10, 11], [12, 13], [14])), after]
    sibling_changed = [before, Group([7, 8], ([50, 51, 52], [12, 13], [53])), after]
    neighbours_changed = [Group([60, 61], ([62],)), first[1], Group([63], ([55, 56],))]
    with torch.no_grad():
        a, b, c = (response_logps(model, pack(groups)) for groups in (first, sibling_changed, neighbours_changed))
    assert torch.equal(a[2], b[2])
    assert not torch.equal(a[1], b[1])
    assert torch.equal(a[1:4], c[1:4])
    assert not torch.equal(a[0], c[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_depends_on_its_prompt_and_on_its_own_past_alone(models: dict[str, Path], kind: str) -> None:
    model = lm.load(models[kind])
    with torch.no_grad():
        a, b, c = (
            token_logps(model, pack([Group(prompt, ([1], response))]))[1:]
            for prompt, response in [([7, 8], [3, 4, 5]), ([7, 8], [3, 4, 6]), ([9, 8], [3, 4, 5])]
        )
    assert torch.equal(a[:2], b[:2])
    assert bool((a != c).all())


def test_pair_logps_gives_chosen_then_rejected(models: dict[str, Path]) -> None:
    model = lm.load(models["llama"])
    pairs = random_groups(4, 2, seed=3)
    plain = AutoModelForCausalLM.from_pretrained(models["llama"]).eval()
    with torch.no_grad():
        chosen, rejected = pair_logps(model, pairs)
        expected = naive(plain, pairs)
    torch.testing.assert_close(chosen, expected[0::2], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(rejected, expected[1::2], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_two_passes_are_bitwise_equal(models: dict[str, Path], kind: str) -> None:
    model, packed = lm.load(models[kind]), pack(random_groups(6))
    first, second = response_logps(model, packed), response_logps(model, packed)
    assert torch.equal(first, second)
