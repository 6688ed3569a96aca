"""The blocks of FlexAttention's mask against its definition for each pair of tokens."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from prefdag.text.scoring.flex import BLOCK, flex_mask
from prefdag.text.scoring.packing import Segment

CPU = torch.device("cpu")
lengths = st.integers(1, 400)


@st.composite
def rows(draw: st.DrawFn) -> tuple[Segment, ...]:
    start, segments = 0, []
    for prompt, responses in draw(st.lists(st.tuples(lengths, st.lists(lengths, max_size=3)), min_size=1, max_size=4)):
        segments.append(Segment(start, prompt, tuple(responses)))
        start += prompt + sum(responses)
    return tuple(segments)


def listed(numbers: Tensor | None, indices: Tensor | None) -> Tensor:
    """The blocks that are listed, as a mask (blocks of queries, blocks of keys)."""
    assert numbers is not None
    assert indices is not None
    of_rank = torch.arange(indices.shape[-1]) < numbers[0, 0, :, None]
    return torch.zeros_like(of_rank).scatter_(1, indices[0, 0].long(), of_rank)


def blocks(mask: BlockMask) -> tuple[Tensor, Tensor]:
    partial = listed(mask.kv_num_blocks, mask.kv_indices)
    whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert not (partial & whole).any()
    return partial | whole, whole


@pytest.mark.slow
@settings(max_examples=40)
@given(row=rows(), prefix=st.sampled_from([0, 3, 128, 200]), window=st.sampled_from([None, 1, 60, 130, 300]))
@example(row=(Segment(0, 400, (256, 256)),), prefix=0, window=None)
def test_no_visible_pair_is_skipped_and_no_hidden_pair_is_seen(
    row: tuple[Segment, ...], prefix: int, window: int | None
) -> None:
    mask = flex_mask(row, prefix, window, CPU)
    tokens, keys = mask.seq_lengths
    exact = create_block_mask(mask.mask_mod, None, None, tokens, keys, device="cpu")
    some, whole = blocks(mask)
    needed, hidden_nowhere = blocks(exact)
    assert not (needed & ~some).any()
    assert not (whole & ~hidden_nowhere).any()


@pytest.mark.parametrize(("prefix", "window"), [(0, None), (BLOCK, None), (0, 2 * BLOCK)])
def test_blocks_of_long_rows_are_those_of_torch(prefix: int, window: int | None) -> None:
    """Prompts and responses of whole blocks: nothing is computed in vain, and nothing is masked in vain."""
    row = (Segment(0, 4 * BLOCK, (3 * BLOCK, 2 * BLOCK)), Segment(9 * BLOCK, 2 * BLOCK, (3 * BLOCK,)))
    mask = flex_mask(row, prefix, window, CPU)
    tokens, keys = mask.seq_lengths
    exact = create_block_mask(mask.mask_mod, None, None, tokens, keys, device="cpu")
    for ours, theirs in zip(blocks(mask), blocks(exact), strict=True):
        assert torch.equal(ours, theirs)


def test_the_order_of_indices_is_ascending() -> None:
    """The kernels walk the keys in the order of memory."""
    mask = flex_mask((Segment(0, 900, (300, 200)),), 0, None, CPU)
    for numbers, indices in ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)):
        assert numbers is not None
        assert indices is not None
        for n, row in zip(numbers[0, 0].tolist(), indices[0, 0].tolist(), strict=True):
            assert row[:n] == sorted(row[:n])
