"""The nearest key is that of measuring every difference, however many keys there are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kedit_core.errors import InputError, PatchFormatError
from kedit_methods_memory.nearest import nearest
from kedit_methods_memory.ragged import packed, unpacked


def plain(queries: Tensor, keys: Tensor) -> tuple[list[int], list[float]]:
    indices, distances = [], []
    for query in queries.float():
        found = [float((query - key).square().sum().sqrt()) for key in keys.float()]
        distances.append(min(found))
        indices.append(found.index(min(found)))
    return indices, distances


@settings(deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 80),
    st.integers(0, 5),
    st.integers(1, 40),
    st.sampled_from([1e-3, 1.0, 300.0]),
)
def test_it_is_that_of_every_difference(seed: int, count: int, asked: int, width: int, offset: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randn(count, width, generator=draw) + offset  # far from the origin products lose much
    chosen = torch.randint(count, (asked,), generator=draw)
    queries = keys[chosen] + 1e-3 * torch.randn(asked, width, generator=draw)
    found = nearest(queries, keys)
    index, distance = plain(queries, keys)
    torch.testing.assert_close(found.distance, torch.tensor(distance), rtol=1e-5, atol=1e-9)
    measured = (queries - keys[found.index]).square().sum(dim=1).sqrt()
    torch.testing.assert_close(measured, torch.tensor(distance), rtol=1e-5, atol=1e-9)
    assert all(
        a == b or abs(float(m) - d) <= 1e-5 * d
        for a, b, m, d in zip(found.index.tolist(), index, measured, distance, strict=True)
    )


def test_a_key_is_at_no_distance_from_itself_among_thousands() -> None:
    keys = 4 + torch.randn(3000, 96, generator=torch.Generator().manual_seed(0))
    keys[1700] = keys[12]  # the first of equal ones
    found = nearest(keys, keys)
    expected = torch.arange(3000)
    expected[1700] = 12
    assert torch.equal(found.index, expected) and found.distance.max() == 0
    products = torch.cdist(keys, keys, compute_mode="use_mm_for_euclid_dist").diagonal()
    assert products.max() > 1e-3  # what a radius test would have been given


def test_many_keys_equally_near() -> None:
    keys = torch.ones(100, 8)
    found = nearest(torch.zeros(3, 8), keys)
    assert found.index.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("queries", "keys"), [((1, 4), (0, 4)), ((1, 4), (3, 5)), ((4,), (3, 4))])
def test_what_cannot_be_compared_is_refused(queries: tuple[int, ...], keys: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="cannot be held against"):
        nearest(torch.zeros(queries), torch.zeros(keys))


@given(st.lists(st.lists(st.integers(0, 2**40), max_size=5), max_size=8))
def test_ragged_rows_come_back(rows: list[list[int]]) -> None:
    assert unpacked(*packed(rows)) == [tuple(row) for row in rows]


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2], [0, 3, 2, 3]])
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    with pytest.raises(PatchFormatError, match="must go up from 0 to 3"):
        unpacked(torch.tensor([1, 2, 3]), torch.tensor(offsets, dtype=torch.int64))
