from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kedit_core.errors import InputError
from kedit_core.forward import buckets, cells, collate, shift_right


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 4)), max_size=40), st.integers(1, 120), st.booleans())
def test_buckets_hold_every_row_once_within_the_budget(rows: list[tuple[int, int]], budget: int, shared: bool) -> None:
    lengths, shares = [length for length, _ in rows], [share if shared else 1 for _, share in rows]
    groups = buckets(lengths, budget, shares if shared else None)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(shares[i] for i in group) * max(lengths[i] for i in group) <= budget
    for group, after in pairwise(groups):
        # no two groups that would fit as one, but for what is left out at the first row that does not
        assert (sum(shares[i] for i in group) + shares[after[0]]) * lengths[after[0]] > budget


def test_rows_are_told_by_the_mask_and_not_by_the_pad_id() -> None:
    batch = collate([[0, 0, 5], [7]], pad_id=0, side="left")
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.lengths.tolist() == [3, 1]
    assert batch.columns([0, 0]).tolist() == [0, 2]
    assert collate([[0, 0, 5], [7]], pad_id=0).columns([-1, -1]).tolist() == [2, 0]


def test_columns_beyond_a_row_are_refused() -> None:
    batch = collate([[1, 2, 3], [7]], pad_id=0)
    for wrong in ([2, 1], [0, -2], [0]):
        with pytest.raises(InputError):
            batch.columns(wrong)


def test_empty_batches_are_refused() -> None:
    for rows in ([], [[1], []]):
        with pytest.raises(InputError, match="at least one"):
            collate(rows, pad_id=0)


def test_prompt_ends_and_decoder_rows() -> None:
    batch = collate([[1, 2, 3], [7]], 0, "left", decoder_rows=[[9], [9, 8]], prompt_lengths=[2, 1])
    assert batch.prompt_ends is not None and batch.decoder_input_ids is not None
    assert batch.prompt_ends.tolist() == [1, 2]
    assert batch.decoder_input_ids.tolist() == [[9, 0], [9, 8]]
    assert batch.select([1]).prompt_ends.tolist() == [2]  # type: ignore[union-attr]
    assert batch.to("cpu").input_ids.tolist() == batch.input_ids.tolist()


def test_shift_right_and_cells() -> None:
    assert shift_right([5, 6, 7], 0) == [0, 5, 6]
    assert torch.equal(cells([0, 1], torch.tensor([3, 4])), torch.tensor([[0, 3], [1, 4]]))
