"""Packed rows: the log-probabilities and gradients of one response at a time under transformers' own attention."""

from pathlib import Path

import pytest
import torch
from naive_logps import naive_logps
from tiny_models import TARGETS, VOCABULARY, random_groups, write_model
from transformers import AutoModelForCausalLM

from prefdag.text import model as lm
from prefdag.text.dpo_batch import pair_batch
from prefdag.text.scoring.logps import Pair, pair_logps, response_logps
from prefdag.text.scoring.packing import Group, Segment, batches, pack


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
def test_an_empty_prompt_or_response_is_refused(group: Group) -> None:
    with pytest.raises(ValueError, match="BOS"):
        pack([group])


def test_batches_keep_order_and_budget() -> None:
    groups = random_groups(40)
    rows_of_batches = list(batches(groups, 25))
    assert [row for rows in rows_of_batches for row in rows] == list(range(40))
    assert all(len(rows) == 1 or sum(groups[i].n_tokens for i in rows) <= 25 for rows in rows_of_batches)
    assert list(batches([Group([1] * 9, ([2],))], 5)) == [[0]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
def test_packed_rows_equal_one_response_at_a_time(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / kind, kind)
    groups = random_groups(12, responses=None, seed=1)
    packed_model, plain = lm.load(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    logps, expected = response_logps(packed_model, pack(groups)), naive_logps(plain, groups)
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.arange(len(logps)).cos()  # a different gradient for each response
    (logps * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for (name, p), q in zip(packed_model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_a_response_sees_neither_its_sibling_nor_other_groups(tmp_path: Path) -> None:
    model = lm.load(write_model(tmp_path / "llama", "llama"))
    with torch.no_grad():
        logps = response_logps(model, pack([Group([1, 2], ([3, 4], [5, 6])), Group([7], ([8], [9]))]))
        changed = response_logps(model, pack([Group([1, 2], ([10, 11], [5, 6])), Group([12], ([13], [14]))]))
        again = response_logps(model, pack([Group([1, 2], ([3, 4], [5, 6])), Group([7], ([8], [9]))]))
    assert logps[1] == pytest.approx(float(changed[1]), abs=1e-5)
    assert logps[0] != pytest.approx(float(changed[0]), abs=1e-2)  # so the comparison above could have failed
    assert torch.equal(logps, again)


@torch.no_grad()
def test_log_probabilities_of_pairs_are_those_of_their_responses(tmp_path: Path) -> None:
    """One pair with a mismatched response, one without a rejected response, one without a chosen response.

    The shared length of the first pair is 1, so the shared part of its chosen response is the first token.
    """
    model = lm.load(write_model(tmp_path / "llama", "llama"))
    pairs = [Pair([1, 2], [3, 4], [5], [6, 7, 8]), Pair([6], [7, 9], None), Pair([6], None, [8, 9, 10])]
    scores = pair_logps(model, pairs, confidence=True)
    alone = [([1, 2], [3, 4]), ([1, 2], [5]), ([1, 2], [6, 7, 8]), ([6], [7, 9]), ([6], [8, 9, 10]), ([1, 2], [3])]
    c, r, m, second, third, first_token = (response_logps(model, pack([Group(p, (y,))]))[0] for p, y in alone)
    zero = torch.tensor(0.0)
    assert scores.mismatched is not None
    for logps, expected in (
        (scores.chosen.logps, [c, second, zero]),
        (scores.rejected.logps, [r, zero, third]),
        (scores.mismatched.logps, [m, zero, zero]),
        (scores.chosen.shared_logps, [first_token, second, zero]),
        (scores.rejected.shared_logps, [r, zero, third]),
    ):
        torch.testing.assert_close(logps, torch.stack(expected), rtol=1e-5, atol=1e-5)
    batch = pair_batch(pairs, scores, scores)
    assert batch.chosen.tokens.tolist() == [2, 2, 1]
    assert batch.rejected.tokens.tolist() == [1, 1, 3]
    # WPO, eq. 2, written out for the first chosen response: the mean over its tokens of log p - log sum p^2.
    logits = model(
        input_ids=torch.tensor([[1, 2, 3]]),
        position_ids=torch.arange(3)[None],
        segments=(Segment(0, 2, (1,)),),
    ).logits[0]
    p = logits.softmax(-1)
    by_hand = sum((p[place, token] / (p[place] ** 2).sum()).log() for place, token in ((1, 3), (2, 4))) / 2
    assert scores.chosen.confidence is not None
    assert float(scores.chosen.confidence[0]) == pytest.approx(float(by_hand), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
@torch.no_grad()
def test_neither_padding_nor_other_rows_change_a_score(kind: str, tmp_path: Path) -> None:
    """Against transformers' own attention over rows padded left or right with either of two pad ids, alone or in a batch."""
    folder = write_model(tmp_path / kind, kind)
    model, plain = lm.load(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    groups = random_groups(6, responses=1, seed=3)
    together = response_logps(model, pack(groups))
    alone = torch.cat([response_logps(model, pack([group])) for group in groups])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    rows = [[*g.prompt, *g.responses[0]] for g in groups]
    width = max(map(len, rows)) + 2
    for pad, left in ((0, False), (VOCABULARY - 1, False), (0, True), (VOCABULARY - 1, True)):
        fill = [[pad] * (width - len(row)) for row in rows]
        ids = torch.tensor([f + row if left else row + f for row, f in zip(rows, fill, strict=True)])
        mask = torch.tensor(
            [
                [0] * len(f) + [1] * len(r) if left else [1] * len(r) + [0] * len(f)
                for r, f in zip(rows, fill, strict=True)
            ]
        )
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logps = plain(input_ids=ids, attention_mask=mask, position_ids=positions).logits.log_softmax(-1)
        for i, (group, f) in enumerate(zip(groups, fill, strict=True)):
            start = len(f) * left + len(group.prompt)
            places = range(start - 1, start - 1 + len(group.responses[0]))
            expected = sum(logps[i, place, token] for place, token in zip(places, group.responses[0], strict=True))
            assert float(together[i]) == pytest.approx(float(expected), abs=1e-4)
