"""An update as two thin factors, and the solution that one of them is; plain linear algebra in float64, no model.

``Delta = left right^T`` with one column for each fact: MEMIT, EMMET, PMET and AlphaEdit differ only in how ``right`` is
found, and ``left`` is what the facts' outputs must move by (Meng et al. 2023, equation 14; MEMIT sheet, section 9).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_methods_locate.stats.definite import Definite, mean_times
from kedit_methods_locate.stats.statistic import Statistic

Form: TypeAlias = Literal["fact", "direct", "lu"]
"""How a system was solved: ``fact`` by a matrix over the facts (Woodbury), ``direct`` by a Cholesky factor of the whole
matrix, ``lu`` by a general solve of it."""

Attempt: TypeAlias = Callable[[], tuple[Tensor, float] | None]
"""Gives ``right`` and its residual, or None when it broke down."""

TOLERANCE = 1e-6
"""A larger relative residual sends a solve to the next form."""


@frozen(eq=False)
class Factors:
    """``Delta = left right^T``, of rank at most n.

    Attributes: left — ``[out, n]`` float64; right — ``[in, n]`` float64, both where it was solved.
    """

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, left: Tensor, right: Tensor, what: str = "the update") -> Factors:
        """The update ``what`` for the wanted movements ``left`` ``[out, n]`` and a :class:`Solution`'s ``right``.

        Raises MethodError when they are not one column for each fact, or not finite.
        """
        wide = left.to(right.device).to(torch.float64)
        if wide.ndim != 2 or wide.shape[1] != right.shape[1]:
            raise MethodError(
                f"the residuals of {what} have shape {tuple(left.shape)}; one column for each of {right.shape[1]} "
                "facts is needed"
            )
        if not bool(torch.isfinite(wide).all() & torch.isfinite(right).all()):
            raise MethodError(
                f"{what} is not finite; lower v_lr, set clamp_norm_factor, or take a statistic with a ridge "
                "(mom2_ridge)"
            )
        return cls(wide, right)

    @property
    def norm(self) -> float:
        """Frobenius norm of the update."""
        return self._length(self.right)

    def delta(self) -> Tensor:
        """The update formed whole: ``[out, in]``."""
        return self.left @ self.right.T

    def moved(self, statistic: Statistic) -> float:
        """``tr(Delta C Delta^T)``: how far ordinary text's outputs move, as a mean square."""
        # the sum goes to the factors: on an accelerator the product would take the host minutes
        total = statistic.sum.to(self.right.device)
        return self._length(mean_times(total, statistic.count, self.right)) ** 2

    def _length(self, image: Tensor) -> float:
        """Square root of ``tr(left right^T image left^T)``."""
        product = (self.left.T @ self.left) * (self.right.T @ image)
        return math.sqrt(max(float(product.sum()), 0.0))


@frozen(eq=False)
class Solution:
    """The factor ``right``, and what is worth knowing of the solve.

    Attributes:
        right: ``[in, n]`` float64, A of the MEMIT sheet.
        gain: ``[n]``, ``k^T (weight C)^-1 k``: a fact written alone gets ``gain / (1 + gain)`` of what it asks for.
        form: how it was solved in the end.
        residual: relative, in the Frobenius norm, of the equation that defines ``right``.
        tried: every form that was tried; the others left larger residuals, or failed.
    """

    right: Tensor
    gain: Tensor
    form: Form
    residual: float
    tried: tuple[Form, ...]

    @property
    def share(self) -> Tensor:
        """``[n]``: what of its residual each fact would get if it were written alone."""
        return self.gain / (1 + self.gain)

    @property
    def accurate(self) -> bool:
        """Whether the residual is within the tolerance; when not, the statistic needs a ridge."""
        return self.residual < TOLERANCE

    def record(self) -> dict[str, Any]:
        """For the patch's state: JSON-able."""
        return {
            "form": self.form,
            "tried": list(self.tried),
            "residual": self.residual,
            "smallest_gain": float(self.gain.min()),
            "smallest_share": float(self.share.min()),
        }


def checked_keys(keys: Tensor, matrix: Definite) -> Tensor:
    """Keys ``[in, n]`` in float64 on the device of ``matrix``.

    Raises MethodError when they do not fit, are none, or are not finite.
    """
    if keys.ndim != 2 or keys.shape[0] != matrix.width or keys.shape[1] == 0:
        raise MethodError(
            f"the keys have shape {tuple(keys.shape)}; [{matrix.width}, n] with one column for each of n facts is "
            "needed; the statistic may be of another layer or model"
        )
    wide = keys.to(device=matrix.device, dtype=torch.float64)
    if not bool(torch.isfinite(wide).all()):
        raise MethodError("the keys hold values that are not finite; run the model in float32")
    return wide


def solve_checked(attempts: Sequence[tuple[Form, Attempt]], gain: Tensor) -> Solution:
    """The first attempt whose residual is within the tolerance, else the one with the smallest.

    Raises MethodError when all broke down.
    """
    best: tuple[float, Form, Tensor] | None = None
    tried: list[Form] = []
    for form, attempt in attempts:
        tried.append(form)
        made = attempt()
        if made is None or not math.isfinite(made[1]):
            continue
        if best is None or made[1] < best[0]:
            best = (made[1], form, made[0])
        if best[0] < TOLERANCE:
            break
    if best is None:
        raise MethodError(
            "the update's equations cannot be solved with this statistic; set mom2_ridge (1e-4, say), or give a larger "
            "corpus (--corpus)"
        )
    return Solution(right=best[2], gain=gain, form=best[1], residual=best[0], tried=tuple(tried))
