"""The ridge regression that makes many tokens' wishes into one shift of a weight.

Tan et al. 2024 (arXiv 2311.04661), section 3.2: ``S = (K^T K + lambda I)^-1 K^T D`` for keys ``K [N, in]`` and wanted
changes of the output ``D [N, out]``. With fewer keys than inputs the dual form ``K^T (K K^T + lambda I)^-1 D`` is the
same, and smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import cast

import torch
from torch import Tensor

_MANY = 100_000  # keys from which on sums are taken in float64
CLAMP = 20.0  # of a ridge's logarithm, to both sides
_JITTER = 1e-6


def ridge_of(log_ridge: Tensor) -> Tensor:
    """The ridge from its logarithm, kept within e^-20 and e^20."""
    return log_ridge.clamp(-CLAMP, CLAMP).exp()


class Normal:
    """The normal equations of some keys, factorised once.

    Args:
        keys: ``[N, in]``, float32 or float64; they stay where they are, and are read in portions of at most 100,000.
        ridge: above 0.
        device: where is solved; where the keys are, unless given. Results are there.

    Memory: the smaller of ``N^2`` and ``in^2`` numbers, twice, and a portion of keys in float64 when there are more.
    """

    def __init__(self, keys: Tensor, ridge: float, device: torch.device | None = None) -> None:
        self.keys, self.ridge = keys, ridge
        self.dual = len(keys) < keys.shape[1]
        self._dtype = keys.dtype  # that results come in
        self._wide = torch.float64 if len(keys) > _MANY else keys.dtype
        self._device = device or keys.device
        grams = (each @ each.T if self.dual else each.T @ each for _, each in self._portions())
        gram = reduce(torch.add, grams)
        self._factor = _factorised(0.5 * (gram + gram.T), ridge)

    def shift(self, values: Tensor) -> Tensor:
        """``S [in, out]`` for wanted changes ``D [N, out]``."""
        if self.dual:
            return self._narrow(self._keys().T @ self._solve(self._widened(values)))
        return self._narrow(self._solve(self._met(values)))

    def spread(self, which: slice = slice(None)) -> Tensor:
        """``A^T [N, in]``, rows of the map from wanted changes to the shift: ``S = A D``; those ``which`` of it."""
        if self.dual:
            one = torch.eye(len(self.keys), dtype=self._wide, device=self._device)
            return self._narrow(self._solve(one[:, which]).T @ self._keys())
        return self._narrow(self._solve(self._widened(self.keys[which]).T).T)

    def pulled(self, gradient: Tensor) -> Tensor:
        """``[N, out]`` gradient of a loss with respect to ``D``, from that with respect to ``S``, ``Q [in, out]``.

        ``K (K^T K + lambda I)^-1 Q``.
        """
        gradient = self._widened(gradient)
        if self.dual:
            return self._narrow(self._solve(self._keys() @ gradient))
        solution = self._solve(gradient)
        return torch.cat([self._narrow(each @ solution) for _, each in self._portions()])

    def pulled_ridge(self, gradient: Tensor, values: Tensor) -> Tensor:
        """The gradient with respect to the ridge's logarithm: ``-lambda sum(P * S)``, ``P = (K^T K + lambda I)^-1 Q``.

        A scalar; for the dual ``sum(P * S) = sum((K P) * M)`` with ``S = K^T M``.
        """
        gradient = self._widened(gradient)
        if self.dual:
            both = self._solve(self._keys() @ gradient) * self._solve(self._widened(values))
        else:
            both = self._solve(gradient) * self._solve(self._met(values))
        return self._narrow(-self.ridge * both.sum())

    def _portions(self) -> Iterator[tuple[slice, Tensor]]:
        """Which keys, and these as they are reckoned with."""
        for start in range(0, max(len(self.keys), 1), _MANY):
            rows = slice(start, start + _MANY)
            yield rows, self._widened(self.keys[rows])

    def _keys(self) -> Tensor:
        """All keys as they are reckoned with: few ones."""
        return self._widened(self.keys)

    def _met(self, values: Tensor) -> Tensor:
        """``K^T D``."""
        return reduce(torch.add, (each.T @ self._widened(values[rows]) for rows, each in self._portions()))

    def _widened(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._wide)

    def _narrow(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype)

    def _solve(self, right: Tensor) -> Tensor:
        solution: Tensor = torch.cholesky_solve(right, self._factor)
        return solution


def _factorised(gram: Tensor, ridge: float) -> Tensor:
    """Cholesky factor of a Gram matrix with a ridge; with more of it where rounding has made it indefinite."""
    size = len(gram)
    more = 0.0
    step = max(_JITTER * float(gram.diagonal().sum()) / max(size, 1), torch.finfo(gram.dtype).tiny)
    while True:
        whole = gram + (ridge + more) * torch.eye(size, dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(whole)
        if not int(failed) or not bool(torch.isfinite(whole).all()):
            return cast(Tensor, factor)
        more = max(10 * more, step)
