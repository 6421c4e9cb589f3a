"""Changes of a weight as factors: exact where they are low-rank, by SVD where they are not or are to be truncated.

Everything is float64, on the CPU, in [out, in] terms, and cast once at the end. Memory: one weight in float64 where a
change is dense or the ranks add up to more than the smaller side, else the factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import InputError, PatchFormatError
from kedit_core.patches import LowRankDelta
from kedit_core.patches.container import check_memory
from kedit_core.patches.operations import Delta

EXACT = torch.float64
_FEW = 64  # rows or columns that become factors as they are, without an SVD
_NOISE = 1e-6  # of a change, relative in Frobenius norm: what is left out as rounding of its float32 values


@frozen(eq=False)
class Factors:
    """left ``[out, r]`` and right ``[r, in]``, whose product is a change or stands for one."""

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def product(self) -> Tensor:
        """``[out, in]``."""
        return self.left @ self.right

    def cast(self, dtype: torch.dtype) -> Factors:
        """In another dtype; for one of 16 bits, columns and rows are first brought to like size by powers of two."""
        factors = self if dtype.itemsize > 2 else self._balanced()
        return Factors(factors.left.to(dtype), factors.right.to(dtype))

    def padded(self, rank: int) -> Factors:
        """With zeros up to ``rank``, contiguous."""
        left = self.left.new_zeros(self.left.shape[0], rank)
        right = self.right.new_zeros(rank, self.right.shape[1])
        left[:, : self.rank] = self.left
        right[: self.rank] = self.right
        return Factors(left, right)

    def _balanced(self) -> Factors:
        left, right = self.left.abs().amax(0), self.right.abs().amax(1)
        known = (left > 0) & (right > 0)
        shift = torch.where(known, ((right / left).log2() / 2).round(), 0.0).to(self.left.dtype)
        return Factors(self.left * shift.exp2(), self.right * (-shift).exp2()[:, None])


@frozen(eq=False)
class LowRankChange:
    """A change whose exact factors are at hand."""

    factors: Factors

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return _norm(self.factors)

    def best(self, max_rank: int | None) -> Factors:
        """The factors as they are; where they have more than ``max_rank``, the nearest that have not."""
        if max_rank is None or self.factors.rank <= max_rank:
            return self.factors
        return _nearest(*_svd(self.factors), max_rank)

    def error(self, written: Factors) -> float:
        """Frobenius norm of what ``written`` misses, relative to that of the change; 0 for a change by nothing."""
        exact, left, right = self.factors, written.left.to(EXACT), written.right.to(EXACT)
        if torch.equal(left, exact.left) and torch.equal(right, exact.right):
            return 0.0
        missing = Factors(torch.cat([exact.left, -left], 1), torch.cat([exact.right, right]))
        return _relative(_norm(missing), self.norm)


@frozen(eq=False)
class WholeChange:
    """A change that is low-rank only as an SVD tells."""

    matrix: Tensor

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(self.matrix.norm())

    def best(self, max_rank: int | None) -> Factors:
        """Factors of the numerical rank, or of ``max_rank`` where that is less."""
        left, values, right = torch.linalg.svd(self.matrix, full_matrices=False)
        return _nearest(left, values, right, max_rank)

    def error(self, written: Factors) -> float:
        """As :meth:`LowRankChange.error`."""
        missing = self.matrix - written.left.to(EXACT) @ written.right.to(EXACT)
        return _relative(float(missing.norm()), self.norm)


Change: TypeAlias = LowRankChange | WholeChange


def change_of(deltas: Sequence[Delta], shape: tuple[int, int]) -> Change:
    """The sum of deltas of one weight of ``shape`` (out, in); low-rank factors are put side by side.

    Raises InputError for a weight that a patch says is larger than could be formed here.
    """
    parts = [Factors(d.left.to(EXACT), d.right.to(EXACT)) for d in deltas if isinstance(d, LowRankDelta)]
    others = [delta for delta in deltas if not isinstance(delta, LowRankDelta)]
    if others:
        try:
            check_memory(EXACT.itemsize * shape[0] * shape[1])
        except PatchFormatError as error:
            raise InputError(f"a change of a weight of {shape[0]} x {shape[1]} cannot be formed: {error}") from error
        rest = torch.zeros(shape, dtype=EXACT)
        for delta in others:
            rest += delta.delta(shape, EXACT)
        if (lines := _lines(rest)) is None:
            for part in parts:
                rest += part.product()
            return WholeChange(rest)
        parts.append(lines)
    side_by_side = Factors(torch.cat([p.left for p in parts], 1), torch.cat([p.right for p in parts]))
    if side_by_side.rank > min(shape):
        return WholeChange(side_by_side.product())
    return LowRankChange(side_by_side)


def _lines(matrix: Tensor) -> Factors | None:
    """Exact factors of a matrix that is zero but for few rows or columns, else None."""
    rows, columns = matrix.any(1).nonzero().flatten(), matrix.any(0).nonzero().flatten()
    if min(len(rows), len(columns)) > _FEW:
        return None
    if len(columns) <= len(rows):
        return Factors(matrix[:, columns], _unit_rows(columns, matrix.shape[1]))
    return Factors(_unit_rows(rows, matrix.shape[0]).T, matrix[rows])


def _unit_rows(at: Tensor, size: int) -> Tensor:
    """``[n, size]``: row i is zero but for a one at ``at[i]``."""
    unit = torch.zeros(len(at), size, dtype=EXACT)
    unit[torch.arange(len(at)), at] = 1.0
    return unit


def _nearest(left: Tensor, values: Tensor, right: Tensor, max_rank: int | None) -> Factors:
    """The nearest factors of at most ``max_rank`` in Frobenius norm (Eckart and Young 1936).

    The rank is the numerical one where that is less: what is then left out is 1e-6 of the change at most.
    """
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt()
    kept = int((tails > _NOISE * tails[:1]).sum())
    kept = kept if max_rank is None else min(kept, max_rank)
    roots = values[:kept].sqrt()
    return Factors(left[:, :kept] * roots, roots[:, None] * right[:kept])


def _svd(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """As ``torch.linalg.svd`` of the product: two QRs and an SVD of the inner size."""
    outward, upper = torch.linalg.qr(factors.left)
    inward, lower = torch.linalg.qr(factors.right.T)
    left, values, right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return outward @ left, values, right @ inward.T


def _norm(factors: Factors) -> float:
    """Frobenius norm of the product, which is never formed."""
    upper, lower = torch.linalg.qr(factors.left, mode="r")[1], torch.linalg.qr(factors.right.T, mode="r")[1]
    return float((upper @ lower.T).norm())


def _relative(missing: float, norm: float) -> float:
    return missing / norm if norm > 0 else 0.0
