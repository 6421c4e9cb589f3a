"""The ridge regression that makes many tokens' wishes into one shift of a weight.

Tan et al. 2024 (arXiv 2311.04661), section 3.2: ``S = (K^T K + lambda I)^-1 K^T D`` for keys ``K [N, in]`` and wanted
changes of the output ``D [N, out]``. With fewer keys than inputs the dual form ``K^T (K K^T + lambda I)^-1 D`` is the
same, and smaller.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

_MANY = 100_000  # keys from which on sums are taken in float64
_CLAMP = 20.0
_JITTER = 1e-6


def ridge_of(log_ridge: Tensor) -> Tensor:
    """The ridge from its logarithm, kept within e^-20 and e^20."""
    return log_ridge.clamp(-_CLAMP, _CLAMP).exp()


class Normal:
    """The normal equations of some keys, factorised once.

    Args:
        keys: ``[N, in]``, float32 or float64.
        ridge: above 0.

    Memory: the smaller of ``N^2`` and ``in^2`` numbers, twice.
    """

    def __init__(self, keys: Tensor, ridge: float) -> None:
        self._dtype = keys.dtype  # that results come in
        self.keys = keys.double() if len(keys) > _MANY else keys
        self.ridge = ridge
        self.dual = len(keys) < keys.shape[1]
        gram = self.keys @ self.keys.T if self.dual else self.keys.T @ self.keys
        self._factor = _factorised(0.5 * (gram + gram.T), ridge)

    def shift(self, values: Tensor) -> Tensor:
        """``S [in, out]`` for wanted changes ``D [N, out]``."""
        values = values.to(self.keys.dtype)
        if self.dual:
            return (self.keys.T @ self._solve(values)).to(self._dtype)
        return self._solve(self.keys.T @ values).to(self._dtype)

    def spread(self, which: slice = slice(None)) -> Tensor:
        """``A^T [N, in]``, rows of the map from wanted changes to the shift: ``S = A D``; those ``which`` of it."""
        if self.dual:
            one = torch.eye(len(self.keys), dtype=self.keys.dtype, device=self.keys.device)
            return (self._solve(one[:, which]).T @ self.keys).to(self._dtype)
        return self._solve(self.keys[which].T).T.to(self._dtype)

    def pulled(self, gradient: Tensor) -> Tensor:
        """``[N, out]`` gradient of a loss with respect to ``D``, from that with respect to ``S``, ``Q [in, out]``.

        ``K (K^T K + lambda I)^-1 Q``.
        """
        gradient = gradient.to(self.keys.dtype)
        if self.dual:
            return self._solve(self.keys @ gradient).to(self._dtype)
        return (self.keys @ self._solve(gradient)).to(self._dtype)

    def pulled_ridge(self, gradient: Tensor, values: Tensor) -> Tensor:
        """The gradient with respect to the ridge's logarithm: ``-lambda sum(P * S)``, ``P = (K^T K + lambda I)^-1 Q``.

        A scalar; for the dual ``sum(P * S) = sum((K P) * M)`` with ``S = K^T M``.
        """
        gradient, values = gradient.to(self.keys.dtype), values.to(self.keys.dtype)
        if self.dual:
            both = self._solve(self.keys @ gradient) * self._solve(values)
        else:
            both = self._solve(gradient) * self._solve(self.keys.T @ values)
        return (-self.ridge * both.sum()).to(self._dtype)

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
