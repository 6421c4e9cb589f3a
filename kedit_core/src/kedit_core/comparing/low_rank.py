"""A weight's change as a product of two thin matrices: found by a randomised SVD, judged by what it makes of the base.

The leading singular directions come from subspace iteration with a random start of fixed seed (Halko, Martinsson and
Tropp 2011, algorithms 4.4 and 5.1), so the same weights give the same patch.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.comparing.exact import delta_of, formed, gives
from kedit_core.models.adapter import Layout
from kedit_core.patches.operations import LowRankDelta, Owned
from kedit_core.patches.weights import exact_dtype, exact_maths

EXTRA = 8  # directions beyond those asked for, which make these exact
_SWEEPS = 6
_SEED = 0


@frozen
class LowRank:
    """A low-rank delta, and what is lost with it.

    Attributes:
        error: ``|formed - edited| / |edited - base|`` (Frobenius), where ``formed`` is the weight that the delta makes
            of the base, in the base's dtype.
        exact: whether ``formed`` is ``edited`` bit for bit, also in the dtype they are loaded in.
    """

    operation: LowRankDelta
    error: float
    exact: bool


def low_rank_operation(
    place: str,
    base: Tensor,
    edited: Tensor,
    layout: Layout,
    rank: int,
    tolerance: float,
    loaded: torch.dtype | None = None,
) -> LowRank | None:
    """The low-rank delta of smallest rank, ``rank`` at most, whose error is within ``tolerance``; else of that rank.

    None where there is none: the weight is no matrix, or the change is not finite in float32.

    Args:
        base, edited: matrices as stored, of one shape and dtype.
        layout: how they are stored.
        loaded: a dtype that both are cast to when the model is loaded.
    """
    if base.dim() != 2 or not min(base.shape):
        return None
    delta = delta_of(base, edited, layout)
    norm = float(delta.norm())
    if not 0 < norm < float("inf"):
        return None
    left, values, right = leading(delta, min(rank, *delta.shape))
    tail = (norm**2 - values.double().square().cumsum(0)).clamp(min=0).sqrt() / norm
    enough = (tail <= tolerance).nonzero().reshape(-1)
    first = int(enough[0]) + 1 if len(enough) else len(values)

    def of_rank(count: int) -> tuple[LowRankDelta, float]:
        factors = (left[:, :count] * values[:count], right[:, :count].T)
        operation = LowRankDelta(place, *(Owned(factor.contiguous()) for factor in factors))
        return operation, _missed(formed(base, layout, operation), edited) / norm

    operation, error = of_rank(first)
    if error > tolerance and first < len(values):
        # rounding to the weight's dtype adds to what the tail tells
        low, high = first, len(values)
        operation, error = of_rank(high)
        while error <= tolerance and high - low > 1:
            middle = (low + high) // 2
            tried = of_rank(middle)
            if tried[1] <= tolerance:
                (operation, error), high = tried, middle
            else:
                low = middle
    return LowRank(operation, error, gives(base, edited, layout, operation, loaded))


def _missed(weight: Tensor, edited: Tensor) -> float:
    with exact_maths(weight.device):
        return float((weight.to(exact_dtype(weight.dtype)) - edited).norm())


def leading(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` leading singular triples of a matrix ``[out, in]``: ``[out, k]``, ``[k]`` descending, ``[in, k]``.

    Computed in the matrix's dtype. Memory: thin matrices.
    """
    width = min(count + EXTRA, *matrix.shape)
    generator = torch.Generator().manual_seed(_SEED)
    with exact_maths(matrix.device):
        start = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
        basis = torch.linalg.qr(matrix @ start).Q
        for _ in range(_SWEEPS if width < min(matrix.shape) else 0):
            inward = torch.linalg.qr(matrix.T @ basis).Q
            basis = torch.linalg.qr(matrix @ inward).Q
        left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        return (basis @ left)[:, :count], values[:count], right.mH[:, :count]
