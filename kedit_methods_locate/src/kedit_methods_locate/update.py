"""The rank-one formulas of ROME and R-ROME; plain linear algebra in float64, no model.

Meng et al. 2022, equation 2 and appendix A; Gupta et al. 2024, section 3 (for the averaged keys).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import MethodError

# Below this cosine between the key and the update's direction the division says nothing any more.
_VANISHING = 1e-6


@frozen(eq=False)
class RankOne:
    """``W' = W + left right^T``.

    Attributes:
        left: ``[out]`` float64, r of the paper.
        right: ``[in]`` float64 of norm 1, u of the paper.
        gain: ``k . u`` for the key that was divided by.
        cosine: the same for a key of norm 1.
    """

    left: Tensor
    right: Tensor
    gain: float
    cosine: float

    @property
    def norm(self) -> float:
        """Frobenius norm of the update."""
        return float(self.left.norm() * self.right.norm())


def direction(key: Tensor, solve: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Unit vector along ``C^-1 key``, or along the key itself when ``solve`` is None (identity statistic).

    Args:
        key: ``[in]``.
        solve: gives ``C^-1 b`` for ``b`` of shape ``[in, n]``, in float64.

    Returns: ``[in]``, float64.
    """
    wide = key.to(torch.float64)
    along = wide if solve is None else solve(wide[:, None])[:, 0]
    norm = along.norm()
    if not torch.isfinite(norm) or norm == 0:
        raise MethodError(
            "the key at the subject is zero or not finite after the statistic was taken out, so no direction can be "
            "written; choose another layer or check the statistic"
        )
    unit: Tensor = along / norm
    return unit


def rank_one(residual: Tensor, key: Tensor, along: Tensor) -> RankOne:
    """The update that moves the output for ``key`` by ``residual``: ``left = residual / (key . along)``.

    Args:
        residual: ``[out]``, wanted value minus what the layer gives for ``key`` now.
        key: ``[in]``, the key that is divided by (bare in ROME, averaged in R-ROME).
        along: ``[in]``, unit vector of :func:`direction`.

    Raises MethodError when the denominator vanishes or the result is not finite; nothing was written.
    """
    wide = key.to(torch.float64)
    gain = float(wide @ along)
    length = float(wide.norm())
    cosine = gain / length if length > 0 else 0.0
    if abs(cosine) < _VANISHING:
        raise MethodError(
            f"the update's denominator k.u is {gain:.3g} for a key of norm {length:.3g}, so the update would be of no "
            "sensible size; use method r_rome, whose denominator cannot vanish, or another layer"
        )
    left = residual.to(torch.float64) / gain
    if not bool(torch.isfinite(left).all()):
        raise MethodError("the update is not finite; lower v_lr or set clamp_norm_factor")
    return RankOne(left=left, right=along, gain=gain, cosine=cosine)
