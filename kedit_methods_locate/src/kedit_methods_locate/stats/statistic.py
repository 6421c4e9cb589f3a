"""The second-moment statistic of one layer's keys, and what is solved with it.

``C = (1/N) sum k k^T`` over the inputs of the MLP's down-projection at every real token: which key directions ordinary
text uses (Meng et al. 2022, section 3.1). It is not centred. What is stored is the float32 cast of the float64 sum, and
N; everything is worked out from these, so that a statistic read from a file gives the bits that a fresh one gives.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from kedit_core.errors import MethodError

TOKENS_PER_WIDTH = 10
"""Fewer tokens than this times the width make a statistic that is noise in its small directions."""

_DEAD = 1e-10  # of the mean diagonal
_RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # of the mean diagonal, tried in turn
_SPECTRUM_UP_TO = 4096  # widths whose eigenvalues are worth their time (10 m^3)


@frozen(eq=False)
class Factorised:
    """A statistic that can be solved with.

    Attributes:
        lower: ``[in, in]`` float64 Cholesky factor of C plus the ridge.
        ridge: what is on the diagonal beside C, as a share of C's mean diagonal.
        asked: the ridge that was wanted; less than ``ridge`` when C was singular with it.
    """

    lower: Tensor
    ridge: float
    asked: float

    def solve(self, right: Tensor) -> Tensor:
        """``(C + ridge)^-1 right``: ``[in, n] -> [in, n]`` float64, on the device of ``right``."""
        solved = torch.cholesky_solve(right.to(device=self.lower.device, dtype=torch.float64), self.lower)
        return solved.to(right.device)

    @property
    def condition(self) -> float:
        """A lower bound of the condition number, from the factor's diagonal."""
        diagonal = self.lower.diagonal()
        return float(diagonal.max() / diagonal.min()) ** 2


@frozen(eq=False, slots=False)
class Statistic:
    """Sum of ``k k^T`` over the tokens of a corpus, for one layer.

    Attributes:
        layer: the block.
        sum: ``[in, in]`` float32, symmetric.
        count: tokens in the sum.
        record: what it was made from (weights, tokenizer, corpus, sample, ...), JSON-able; empty when unknown.
    """

    layer: int
    sum: Tensor
    count: int
    record: Mapping[str, Any] = field(factory=dict)
    _factors: dict[float, Factorised] = field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.sum.ndim != 2 or self.sum.shape[0] != self.sum.shape[1] or self.count < 1:
            raise MethodError(
                f"the statistic of layer {self.layer} has shape {tuple(self.sum.shape)} over {self.count} tokens; "
                "a square sum over at least one token is needed; collect it again"
            )
        if not bool(torch.isfinite(self.sum).all()):
            raise MethodError(
                f"the statistic of layer {self.layer} holds values that are not finite; collect it again, in float32 "
                "if the model is in half precision"
            )
        if self.trace <= 0:
            raise MethodError(f"the statistic of layer {self.layer} is zero; check the corpus it was taken from")

    @classmethod
    def from_sum(cls, layer: int, total: Tensor, count: int, record: Mapping[str, Any] | None = None) -> Statistic:
        """From a float64 sum; symmetrised and cast as it is stored."""
        return cls(layer, ((total + total.T) / 2).to(torch.float32).cpu().contiguous(), count, dict(record or {}))

    @property
    def width(self) -> int:
        """Number of keys' components, m."""
        return int(self.sum.shape[0])

    @property
    def matrix(self) -> Tensor:
        """``C``: ``[in, in]`` float64, symmetric."""
        wide = self.sum.to(torch.float64)
        return (wide + wide.T) / (2 * self.count)

    @property
    def trace(self) -> float:
        """Mean squared norm of the keys."""
        return float(self.sum.diagonal().to(torch.float64).sum()) / self.count

    @property
    def dead(self) -> int:
        """Units that (nearly) no token of the corpus makes active."""
        diagonal = self.sum.diagonal().to(torch.float64) / self.count
        return int((diagonal < _DEAD * self.trace / self.width).sum())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the numbers alone: what an edit stood on, wherever the file came from."""
        data = self.sum.contiguous().numpy().astype("<f4").tobytes()
        return hashlib.sha256(self.count.to_bytes(8, "little") + data).hexdigest()

    def factorised(self, ridge: float = 0.0) -> Factorised:
        """C as a Cholesky factor, made once for each ridge and kept.

        Where C cannot be factorised as it is, the ridge grows from 1e-7 of the mean diagonal, tenfold each time, until
        it can; what was needed is in the result. Raises MethodError when 1e-2 is not enough.
        """
        if ridge not in self._factors:
            self._factors[ridge] = _factorise(self, ridge)
        return self._factors[ridge]

    def solve(self, right: Tensor, ridge: float = 0.0) -> Tensor:
        """``C^-1 right`` by the cached factor: ``[in, n] -> [in, n]`` float64, on the device of ``right``."""
        return self.factorised(ridge).solve(right)

    def spread(self, vector: Tensor) -> float:
        """``sqrt(v^T C v)`` for ``[in]``: how large ``v . k`` is for the keys of ordinary text (root mean square)."""
        wide = vector.to(device=self.sum.device, dtype=torch.float64)
        # in the sum's own dtype first: a float64 copy of a wide statistic would take gigabytes for one product
        return math.sqrt(max(float((self.sum @ wide.to(self.sum.dtype)).double() @ wide), 0.0) / self.count)

    def summary(self) -> dict[str, Any]:
        """What people want to know of it; eigenvalues only up to width 4096."""
        facts: dict[str, Any] = {
            "layer": self.layer,
            "width": self.width,
            "tokens": self.count,
            "tokens_per_width": self.count / self.width,
            "mean_squared_key_norm": self.trace,
            "dead_units": self.dead,
            "lambda_min": None,
            "lambda_max": None,
            "rank_1e-6": None,
        }
        if self.width <= _SPECTRUM_UP_TO:
            values = torch.linalg.eigvalsh(self.matrix)
            facts["lambda_min"], facts["lambda_max"] = float(values[0]), float(values[-1])
            facts["rank_1e-6"] = int((values > 1e-6 * values[-1]).sum())
        return facts


def merged(parts: list[Statistic]) -> Statistic:
    """One statistic of several parts of a corpus (shards, other runs) of the same layer: sums and counts add up."""
    first = parts[0]
    total = torch.stack([part.sum.to(torch.float64) for part in parts]).sum(0)
    return Statistic.from_sum(first.layer, total, sum(part.count for part in parts), first.record)


def _factorise(statistic: Statistic, asked: float) -> Factorised:
    matrix = statistic.matrix
    unit = statistic.trace / statistic.width
    added = 0.0
    for ridge in (asked, *(step for step in _RIDGES if step > asked)):
        matrix.diagonal().add_((ridge - added) * unit)
        added = ridge
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if not int(failed):
            return Factorised(lower, ridge, asked)
    raise MethodError(
        f"the statistic of layer {statistic.layer} ({statistic.count} tokens, width {statistic.width}) is "
        f"singular even with {added:g} of its mean diagonal added; give a larger corpus (--corpus, --stats)"
    )
