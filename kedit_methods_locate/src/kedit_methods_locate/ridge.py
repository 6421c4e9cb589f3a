"""The ridge update of MEMIT and PMET, and what it must preserve; plain linear algebra in float64, no model.

``Delta = E A^T`` with ``A = (B + K K^T)^-1 K`` minimises ``tr(Delta B Delta^T) + |Delta K - E|^2`` (Meng et al. 2023,
equations 9 to 14). B is ``lambda C``, plus the keys of earlier edits when these are to be kept (Fang et al. 2025,
equation 12; MEMIT sheet, section 8, row 5). AlphaEdit's update is the same with ``B = L2 I`` in reduced coordinates.
"""

from __future__ import annotations

import math

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_methods_locate.factors import Attempt, Form, Solution, checked_keys, solve_checked
from kedit_methods_locate.stats.definite import Definite, Dense


@frozen(eq=False)
class Preserved:
    """What an update should leave alone: ``B = weight C + sum_p k_p k_p^T`` over the keys of earlier edits.

    Grows by :meth:`with_`, which gives a new object, so that an earlier state of a sequence is at hand as long as
    somebody holds it. Nothing is factorised again: with ``Z`` such that ``B^-1 = (weight C)^-1 - Z Z^T``, n more keys
    add the n columns ``Y L^-T`` to Z, where ``Y = B^-1 K`` and ``L L^T = I + K^T Y``. That is the block extension of
    the Cholesky factor of ``I + P^T (weight C)^-1 P``, kept as what it is used for. It costs m^2 n + m M n + n^3; only
    once in m/2 keys all is put into one ``[in, in]`` factor (m^3/3).

    Attributes:
        factor: C; the identity for a method without a statistic.
        weight: lambda.
        count: keys of earlier edits.

    Memory: 16 bytes for each key's component, up to m/2 keys; 16 in^2 bytes beyond.
    """

    factor: Definite
    weight: float
    count: int
    _base: Definite = field(repr=False)
    _scale: float = field(repr=False)
    _keys: Tensor = field(repr=False)
    _whitened: Tensor = field(repr=False)

    @classmethod
    def of(cls, factor: Definite, weight: float = 1.0) -> Preserved:
        """No earlier edits: ``B = weight C``. Raises MethodError when the weight is not above 0."""
        if not weight > 0 or not math.isfinite(weight):
            raise MethodError(f"the statistic's weight is {weight}; it must be above 0, or nothing is preserved")
        none = torch.zeros(factor.width, 0, dtype=torch.float64, device=factor.device)
        return cls(factor, weight, 0, factor, weight, none, none)

    @property
    def width(self) -> int:
        """Components of a key, m."""
        return self.factor.width

    @property
    def device(self) -> torch.device:
        """Where it is solved."""
        return self.factor.device

    def solve(self, right: Tensor) -> Tensor:
        """``B^-1 right``: ``[in, n] -> [in, n]`` float64."""
        return self._less_past(right, self._base.solve(right) / self._scale)

    def solved(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """``B^-1 keys``, and the same without the keys of earlier edits."""
        alone = self.factor.solve(keys) / self.weight
        return (self._less_past(keys, alone) if self._base is self.factor else self.solve(keys)), alone

    def multiply(self, right: Tensor) -> Tensor:
        """``B right``: ``[in, n] -> [in, n]`` float64."""
        past = self._keys.to(right.device)
        wide = right.to(torch.float64)
        return self._base.multiply(wide) * self._scale + past @ (past.T @ wide)

    def dense(self) -> Tensor:
        """``B``, a fresh copy: ``[in, in]`` float64."""
        return self._base.dense().mul_(self._scale).addmm_(self._keys, self._keys.T)

    def with_(self, keys: Tensor, weight: float = 1.0) -> Preserved:
        """The same with ``weight * keys keys^T`` added.

        Args:
            keys: ``[in, n]``, the keys of facts that have been written, as they are on the edited model.
            weight: how much they count against a new fact (1 as in the papers).

        Raises MethodError for keys that do not fit or are not finite, or a weight that is not above 0.
        """
        if not weight > 0 or not math.isfinite(weight):
            raise MethodError(f"the weight of earlier edits' keys is {weight}; it must be above 0, or leave them out")
        wide = checked_keys(keys, self) * math.sqrt(weight)
        added = wide.shape[1]
        grown = evolve(self, count=self.count + added)
        if self._keys.shape[1] + added <= self.width / 2:
            solved = self.solve(wide)
            lower, failed = torch.linalg.cholesky_ex(_plus_identity(wide.T @ solved))
            if not int(failed):
                more = torch.linalg.solve_triangular(lower.T, solved, upper=True, left=False)
                return evolve(
                    grown, keys=torch.cat([self._keys, wide], 1), whitened=torch.cat([self._whitened, more], 1)
                )
        whole = Dense.of(self.dense().addmm_(wide, wide.T))
        if whole is None:
            raise MethodError(
                "the statistic with the keys of earlier edits cannot be factorised; set mom2_ridge (1e-4, say)"
            )
        none = self._keys[:, :0]
        return evolve(grown, base=whole, scale=1.0, keys=none, whitened=none)

    def _less_past(self, right: Tensor, solved: Tensor) -> Tensor:
        past = self._whitened.to(right.device)
        return solved - past @ (past.T @ right.to(torch.float64))


def ridge_update(preserved: Preserved, keys: Tensor) -> Solution:
    """``A = (B + K K^T)^-1 K``: MEMIT's right factor.

    Up to n = m/2 facts the system solved is one over the facts, ``A = Y (I + K^T Y)^-1`` with ``Y = B^-1 K``; beyond, a
    Cholesky factor of the whole matrix. The residual of the equation is always measured against the matrix itself, and
    another form is tried when it is above 1e-6.

    Args:
        preserved: what the update should leave alone, ``B``.
        keys: ``[in, n]``, a column for each fact; equal columns are no problem.

    Returns: ``right`` ``[in, n]`` on the device of ``preserved``. Raises MethodError.
    """
    wide = checked_keys(keys, preserved)
    few = wide.shape[1] <= preserved.width / 2
    solved, alone = preserved.solved(wide)
    size = wide.norm()

    def judged(right: Tensor) -> tuple[Tensor, float]:
        left_over = preserved.multiply(right) + wide @ (wide.T @ right) - wide
        return right, float(left_over.norm() / size) if float(size) else 0.0

    def fact() -> tuple[Tensor, float] | None:
        lower, failed = torch.linalg.cholesky_ex(_plus_identity(wide.T @ solved))
        return None if int(failed) else judged(torch.cholesky_solve(solved.T, lower).T)

    def direct() -> tuple[Tensor, float] | None:
        whole = Dense.of(preserved.dense().addmm_(wide, wide.T))
        return None if whole is None else judged(whole.solve(wide))

    def lu() -> tuple[Tensor, float] | None:
        right, failed = torch.linalg.solve_ex(preserved.dense().addmm_(wide, wide.T), wide)
        return None if int(failed) else judged(right)

    attempts: list[tuple[Form, Attempt]] = [("fact", fact), ("direct", direct), ("lu", lu)]
    return solve_checked(attempts if few else attempts[1:], (wide * alone).sum(0))


def _plus_identity(matrix: Tensor) -> Tensor:
    """``I`` plus the symmetric part, without the asymmetry of rounding."""
    whole = (matrix + matrix.T) / 2
    whole.diagonal().add_(1)
    return whole
