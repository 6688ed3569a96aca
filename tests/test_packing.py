"""Packed rows: the same log-probabilities and gradients as one response at a time, under transformers' own attention."""

from pathlib import Path

import pytest
import torch
from tiny_models import TARGETS, random_groups, write_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from prefdag.text import model as lm
from prefdag.text.logps import pair_logps, response_logps
from prefdag.text.packing import Group, Segment, batches, pack


def naive(model: nn.Module, groups: list[Group]) -> Tensor:
    """Each response alone behind its prompt, one forward pass each."""
    sums = []
    for prompt, responses in groups:
        for response in responses:
            logits = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
            sums.append(torch.stack([logits[i, token] for i, token in zip(places, response, strict=True)]).sum())
    return torch.stack(sums)


def test_the_worked_example_of_the_docstring() -> None:
    packed = pack([Group([1, 2], ([3, 4], [5])), Group([6], ([7, 8],))])
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 1, 2]
    assert packed.predictors.tolist() == [1, 2, 1, 5, 6]
    assert packed.targets.tolist() == [3, 4, 5, 7, 8]
    assert packed.owners.tolist() == [0, 0, 1, 2, 2]
    assert packed.segments == (Segment(0, 2, (2, 1)), Segment(5, 1, (2,)))
    assert packed.n_responses == 3


@pytest.mark.parametrize("group", [Group([], ([1],)), Group([1], ([2], []))])
def test_nothing_is_predicted_from_nothing(group: Group) -> None:
    with pytest.raises(ValueError, match="BOS"):
        pack([group])


def test_batches_keep_order_and_budget() -> None:
    groups = random_groups(40)
    found = list(batches(groups, 25))
    assert [row for batch in found for row in batch] == list(range(40))
    assert all(len(batch) == 1 or sum(groups[i].n_tokens for i in batch) <= 25 for batch in found)
    assert list(batches([Group([1] * 9, ([2],))], 5)) == [[0]]


@pytest.mark.parametrize("kind", TARGETS)
def test_packed_equals_one_at_a_time(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / kind, kind)
    groups = random_groups(12, responses=None, seed=1)
    packed_model, plain = lm.load(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    signs = torch.arange(
        sum(len(g.responses) for g in groups)
    ).cos()  # a gradient that differs from response to response
    found, expected = response_logps(packed_model, pack(groups)), naive(plain, groups)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (found * signs).sum().backward()
    (expected * signs).sum().backward()
    for (name, p), q in zip(packed_model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_a_response_sees_neither_its_sibling_nor_other_groups(tmp_path: Path) -> None:
    model = lm.load(write_model(tmp_path / "llama", "llama"))
    with torch.no_grad():
        one = response_logps(model, pack([Group([1, 2], ([3, 4], [5, 6])), Group([7], ([8], [9]))]))
        other = response_logps(model, pack([Group([1, 2], ([10, 11], [5, 6])), Group([12], ([13], [14]))]))
        again = response_logps(model, pack([Group([1, 2], ([3, 4], [5, 6])), Group([7], ([8], [9]))]))
    assert one[1] == pytest.approx(float(other[1]), abs=1e-5)
    assert one[0] != pytest.approx(float(other[0]), abs=1e-2)  # so the first comparison could have failed
    assert torch.equal(one, again)


def test_pair_logps_are_chosen_then_rejected(tmp_path: Path) -> None:
    model = lm.load(write_model(tmp_path / "llama", "llama"))
    pairs = [Group([1, 2], ([3, 4], [5])), Group([6], ([7], [8, 9]))]
    with torch.no_grad():
        chosen, rejected = pair_logps(model, pairs)
        torch.testing.assert_close(chosen, response_logps(model, pack([Group(p, (c,)) for p, (c, _) in pairs])))
        torch.testing.assert_close(rejected, response_logps(model, pack([Group(p, (r,)) for p, (_, r) in pairs])))
