"""Symmetric positive definite matrices to multiply and solve with: a statistic with its factor, the identity.

All that methods ask of a statistic once it is collected; they are written for any of these. Plain torch, float64.
"""

from __future__ import annotations

from typing import Protocol

import torch
from attrs import evolve, field, frozen
from torch import Tensor

_ROWS = 2048  # rows of a float32 sum that are widened at a time


class Definite(Protocol):
    """A symmetric positive definite matrix ``B`` of shape ``[in, in]``.

    Factors of wide matrices live on one device; ``right`` may come from another, and results go back to it.
    """

    @property
    def width(self) -> int:
        """Rows (and columns)."""

    @property
    def device(self) -> torch.device:
        """Where it is solved."""

    def solve(self, right: Tensor) -> Tensor:
        """``B^-1 right``: ``[in, n] -> [in, n]`` float64, on the device of ``right``."""

    def multiply(self, right: Tensor) -> Tensor:
        """``B right``: ``[in, n] -> [in, n]`` float64, on the device of ``right``."""

    def dense(self) -> Tensor:
        """A fresh copy of ``B``: ``[in, in]`` float64, on ``device``."""


@frozen(eq=False)
class Identity:
    """The identity: what a method stands on without a statistic."""

    width: int
    device: torch.device = field(factory=lambda: torch.device("cpu"))

    def solve(self, right: Tensor) -> Tensor:
        """``right`` in float64."""
        return right.to(torch.float64)

    def multiply(self, right: Tensor) -> Tensor:
        """``right`` in float64."""
        return right.to(torch.float64)

    def dense(self) -> Tensor:
        """Ones on the diagonal."""
        return torch.eye(self.width, dtype=torch.float64, device=self.device)


@frozen(eq=False)
class Factorised:
    """A statistic that can be solved with.

    Attributes:
        lower: ``[in, in]`` float64 Cholesky factor of C plus the ridge.
        ridge: what is on the diagonal beside C, as a share of C's mean diagonal.
        asked: the ridge that was wanted; less than ``ridge`` when C was singular with it.
        total: ``[in, in]`` float32, the sum that C is the mean of.
        count: of how many tokens.

    Memory: 12 in^2 bytes.
    """

    lower: Tensor
    ridge: float
    asked: float
    total: Tensor
    count: int

    @property
    def width(self) -> int:
        """Number of keys' components, m."""
        return int(self.lower.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the factor is."""
        return self.lower.device

    @property
    def diagonal(self) -> float:
        """What stands on the diagonal beside C."""
        trace = float(self.total.diagonal().to(torch.float64).sum()) / self.count
        return self.ridge * trace / self.width

    def solve(self, right: Tensor) -> Tensor:
        """``(C + ridge)^-1 right``: ``[in, n] -> [in, n]`` float64, on the device of ``right``."""
        solved = torch.cholesky_solve(right.to(device=self.device, dtype=torch.float64), self.lower)
        return solved.to(right.device)

    def multiply(self, right: Tensor) -> Tensor:
        """``(C + ridge) right`` from the sum itself, not from the factor: ``[in, n] -> [in, n]`` float64."""
        wide = right.to(device=self.device, dtype=torch.float64)
        return (mean_times(self.total, self.count, wide) + self.diagonal * wide).to(right.device)

    def dense(self) -> Tensor:
        """``C + ridge``, a fresh copy."""
        matrix = mean_of(self.total, self.count)
        matrix.diagonal().add_(self.diagonal)
        return matrix

    def to(self, device: torch.device | str) -> Factorised:
        """The same factor on another device (one that has float64), or itself when it is there."""
        if torch.device(device) == self.device:
            return self
        return evolve(self, lower=self.lower.to(device), total=self.total.to(device))

    @property
    def condition(self) -> float:
        """A lower bound of the condition number, from the factor's diagonal."""
        diagonal = self.lower.diagonal()
        return float(diagonal.max() / diagonal.min()) ** 2


@frozen(eq=False)
class Dense:
    """A matrix that is kept whole, with its factor.

    Attributes: matrix, lower — ``[in, in]`` float64, ``matrix = lower lower^T``.
    """

    matrix: Tensor
    lower: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Dense | None:
        """The matrix with its Cholesky factor; None when it is not positive definite in float64."""
        lower, failed = torch.linalg.cholesky_ex(matrix)
        return None if int(failed) or not bool(torch.isfinite(lower.diagonal()).all()) else cls(matrix, lower)

    @property
    def width(self) -> int:
        """Rows (and columns)."""
        return int(self.matrix.shape[0])

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.matrix.device

    def solve(self, right: Tensor) -> Tensor:
        """``B^-1 right``, float64."""
        wide = right.to(device=self.device, dtype=torch.float64)
        return torch.cholesky_solve(wide, self.lower).to(right.device)

    def multiply(self, right: Tensor) -> Tensor:
        """``B right``, float64."""
        return (self.matrix @ right.to(device=self.device, dtype=torch.float64)).to(right.device)

    def dense(self) -> Tensor:
        """A fresh copy."""
        return self.matrix.clone()


def mean_of(total: Tensor, count: int) -> Tensor:
    """``total / count`` in float64, symmetric: ``[in, in]``."""
    wide = total.to(torch.float64)
    return (wide + wide.T) / (2 * count)


def mean_times(total: Tensor, count: int, right: Tensor) -> Tensor:
    """``(total / count) right`` in float64, for a symmetric ``total`` on the device of ``right``: ``[in, n]``."""
    # a float64 copy of a wide sum would take gigabytes for one product
    starts = range(0, len(total), _ROWS)
    return torch.cat([total[start : start + _ROWS].to(torch.float64) @ right for start in starts]) / count


def solving_device(device: torch.device | str | None) -> torch.device:
    """Where to solve for a model on ``device``: there when it has float64, else on the CPU."""
    wanted = torch.device("cpu" if device is None else device)
    if wanted.type == "cuda" and wanted.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if wanted.type == "mps" else wanted
