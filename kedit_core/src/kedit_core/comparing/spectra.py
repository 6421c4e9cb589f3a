"""A weight change as numbers can be told of it: norm, inner products, singular values and directions.

A low-rank change is never formed whole. Everything is float64, on the CPU, in [out, in] terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.patches.operations import Delta, LowRankDelta, SparseDelta

EXACT = torch.float64


@frozen(eq=False)
class Spectrum:
    """A matrix as ``left @ diag(values) @ right^T``.

    left: ``[out, k]``, right: ``[in, k]``, both with orthonormal columns; values: ``[k]``, descending, not negative.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @classmethod
    def of_factors(cls, left: Tensor, right: Tensor) -> Spectrum:
        """Of ``left [out, k] @ right [k, in]``, k no larger than out and in: two QRs and an SVD of size k."""
        outward, upper = torch.linalg.qr(left)
        inward, lower = torch.linalg.qr(right.T)
        u, values, v = torch.linalg.svd(upper @ lower.T)
        return cls(outward @ u, values, inward @ v.mH)

    @classmethod
    def of_column(cls, column: Tensor) -> Spectrum:
        """Of a matrix ``[out, 1]``."""
        norm = column.norm()
        return cls(column / norm if norm > 0 else column, norm.reshape(1), torch.ones(1, 1, dtype=EXACT))

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(self.values.norm())

    def rank(self, tolerance: float) -> int:
        """How many singular values are greater than ``tolerance`` times the largest."""
        return int((self.values > tolerance * self.values[:1]).sum())

    def factors(self) -> tuple[Tensor, Tensor]:
        """``[out, k]`` and ``[k, in]``, whose product is the matrix."""
        return self.left * self.values, self.right.T

    def spectrum(self) -> Spectrum:
        """This one."""
        return self


@frozen(eq=False)
class Whole:
    """A matrix ``[out, in]`` that is not low-rank as far as its operations tell."""

    matrix: Tensor

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(self.matrix.norm())

    def spectrum(self) -> Spectrum:
        """By a dense SVD: minutes for the largest weights of large models."""
        left, values, right = torch.linalg.svd(self.matrix, full_matrices=False)
        return Spectrum(left, values, right.mH)


WeightChange: TypeAlias = Spectrum | Whole


def summed(deltas: Sequence[Delta], shape: tuple[int, ...], below: Tensor | None = None) -> WeightChange:
    """The sum of deltas of one place, and of ``below`` (all ``shape``, in [out, in] terms).

    A :class:`Spectrum` when all are low-rank, or change few rows or columns, and their inner sizes add up to no more
    than the smaller side. What is no matrix (a bias, fused experts) is seen as one column of all its elements.
    """
    if below is None and len(shape) == 2:
        pairs = [_factors(delta, shape) for delta in deltas]
        found = [pair for pair in pairs if pair is not None]
        if len(found) == len(pairs) and sum(left.shape[1] for left, _ in found) <= min(shape):
            left, right = torch.cat([left for left, _ in found], 1), torch.cat([right for _, right in found])
            return Spectrum.of_factors(left, right)
    whole = torch.zeros(shape, dtype=EXACT) if below is None else below.clone()
    for delta in deltas:
        whole += delta.delta(shape, EXACT)
    return Whole(whole) if len(shape) == 2 else Spectrum.of_column(whole.reshape(-1, 1))


def inner(first: WeightChange, second: WeightChange) -> float:
    """``sum(first * second)``; of low-rank ones from their factors."""
    if isinstance(first, Whole) and isinstance(second, Whole):
        return float((first.matrix * second.matrix).sum())
    if isinstance(first, Whole):
        first, second = second, first
    left, right = first.spectrum().factors()
    if isinstance(second, Whole):
        return float((left * (second.matrix @ right.T)).sum())
    other_left, other_right = second.factors()
    return float(((left.T @ other_left) * (right @ other_right.T)).sum())


def _factors(delta: Delta, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    """``[out, k]`` and ``[k, in]`` with a small k, or None where the delta has none at hand."""
    if isinstance(delta, LowRankDelta):
        return delta.left.to(EXACT), delta.right.to(EXACT)
    if not isinstance(delta, SparseDelta) or delta.indices.numel() > min(shape):
        return None
    indices, values = delta.indices, delta.values.to(EXACT)
    if delta.axis == "column":
        return values, _one_hot(indices, shape[1]).T
    if delta.axis == "row":
        return _one_hot(indices, shape[0]), values
    rows, position = (indices // shape[1]).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    kept = torch.zeros(len(rows), shape[1], dtype=EXACT)
    kept[position, indices % shape[1]] = values
    return _one_hot(rows, shape[0]), kept


def _one_hot(indices: Tensor, size: int) -> Tensor:
    """``[size, n]``: column i is zero but for a one at ``indices[i]``."""
    columns = torch.zeros(size, len(indices), dtype=EXACT)
    columns[indices, torch.arange(len(indices))] = 1.0
    return columns
