"""Factors of changes, against the changes formed whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft_tools import randoms

from kedit_core.errors import InputError
from kedit_core.patches import DenseDelta, LowRankDelta, SparseDelta
from kedit_core.patches.operations import Delta
from kedit_peft.factors import Factors, LowRankChange, WholeChange, change_of

SHAPE = (90, 130)


def low(rank: int, seed: int) -> LowRankDelta:
    return LowRankDelta("w", randoms(SHAPE[0], rank, seed=seed), randoms(rank, SHAPE[1], seed=seed + 1))


def sparse(axis: Any, count: int, seed: int) -> SparseDelta:
    limit = {"row": SHAPE[0], "column": SHAPE[1], "element": SHAPE[0] * SHAPE[1]}[axis]
    values = {"row": (count, SHAPE[1]), "column": (SHAPE[0], count), "element": (count,)}[axis]
    at = torch.randperm(limit, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    return SparseDelta("w", axis, at, randoms(*values, seed=seed))


def whole(deltas: list[Delta]) -> torch.Tensor:
    return torch.stack([delta.delta(SHAPE, torch.float64) for delta in deltas]).sum(0)


@pytest.mark.parametrize(
    ("deltas", "rank"),
    [
        ([low(3, 0)], 3),
        ([low(3, 0), low(2, 5)], 5),
        ([sparse("row", 4, 1)], 4),
        ([sparse("column", 6, 2)], 6),
        ([sparse("element", 5, 3)], 5),
        ([sparse("row", 4, 1), sparse("column", 2, 2)], None),
        ([low(3, 0), sparse("column", 6, 2)], 9),
    ],
    ids=["low", "two low", "rows", "columns", "elements", "rows and columns", "low and columns"],
)
def test_what_is_low_rank_has_exact_factors(deltas: list[Delta], rank: int | None) -> None:
    change = change_of(deltas, SHAPE)
    factors = change.best(None)
    torch.testing.assert_close(factors.product(), whole(deltas), rtol=1e-12, atol=1e-14)
    assert change.error(factors) <= 1e-6
    if rank is not None:
        assert isinstance(change, LowRankChange) and factors.rank == rank
        assert change.error(factors) == change.error(factors.cast(torch.float32)) == 0.0
    assert change.norm == pytest.approx(float(whole(deltas).norm()), rel=1e-12)


def test_a_dense_change_has_the_factors_of_its_numerical_rank() -> None:
    exact = randoms(90, 7, seed=1).double() @ randoms(7, 130, seed=2).double()
    change = change_of([DenseDelta("w", exact.float())], SHAPE)
    assert isinstance(change, WholeChange)
    factors = change.best(None)
    assert factors.rank == 7
    assert change.error(factors) <= 1e-6
    full = change_of([DenseDelta("w", randoms(*SHAPE))], SHAPE)
    assert full.best(None).rank == min(SHAPE) and full.error(full.best(None)) < 1e-12
    mixed = [DenseDelta("w", exact.float()), low(2, 9)]
    together = change_of(mixed, SHAPE).best(None)
    assert together.rank == 9
    assert float((together.product() - whole(mixed)).norm() / whole(mixed).norm()) <= 1e-6


@pytest.mark.parametrize("deltas", [[low(12, 0)], [DenseDelta("w", randoms(*SHAPE, seed=4))]], ids=["low", "dense"])
def test_truncation_is_the_best_approximation_and_the_error_is_what_it_misses(deltas: list[Delta]) -> None:
    change, exact = change_of(deltas, SHAPE), whole(deltas)
    left, values, right = torch.linalg.svd(exact)
    for rank in (1, 5):
        cut = change.best(rank)
        plain = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert cut.rank == rank
        torch.testing.assert_close(cut.product(), plain, rtol=0, atol=1e-10)
        missing = float(values[rank:].norm() / values.norm())
        assert change.error(cut) == pytest.approx(missing, rel=1e-9)


def test_more_ranks_than_the_weight_has_become_as_many_as_it_has() -> None:
    deltas: list[Delta] = [low(60, 0), low(60, 5)]
    change = change_of(deltas, SHAPE)
    assert isinstance(change, WholeChange) and change.best(None).rank == 90
    torch.testing.assert_close(change.best(None).product(), whole(deltas), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)])
def test_half_precision_factors_of_unlike_size_neither_overflow_nor_vanish(dtype: torch.dtype, unit: float) -> None:
    delta = LowRankDelta("w", randoms(90, 3, size=1e7), randoms(3, 130, seed=1, size=1e-9))
    change = change_of([delta], SHAPE)
    cast = change.best(None).cast(dtype)
    assert cast.left.isfinite().all() and change.error(cast) < 2 * unit
    naive = Factors(delta.left.to(dtype), delta.right.to(dtype))
    assert dtype == torch.bfloat16 or not naive.left.isfinite().all(), "which plain casting would do"


def test_a_change_by_nothing_has_no_error() -> None:
    change = change_of([DenseDelta("w", torch.zeros(SHAPE))], SHAPE)
    assert change.norm == 0.0 and change.error(Factors(torch.zeros(90, 1), torch.ones(1, 130))) == 0.0


def test_padding_adds_zeros_only() -> None:
    factors = change_of([low(3, 0)], SHAPE).best(None).padded(8)
    assert factors.rank == 8 and factors.left.is_contiguous()
    assert not factors.left[:, 3:].any() and not factors.right[3:].any()
    torch.testing.assert_close(factors.product(), whole([low(3, 0)]))


def test_a_weight_that_a_patch_says_is_huge_is_refused_before_it_is_made() -> None:
    """A sparse delta of one number is for a weight of whatever size its manifest claims."""
    one = SparseDelta("w", "element", torch.tensor([3]), torch.ones(1))
    with pytest.raises(InputError, match="16777216 x 16777216 cannot be formed"):
        change_of([one], (1 << 24, 1 << 24))
