"""Running mean and deviation of an editor's inputs, coordinate by coordinate.

Rows are merged in batches by Chan's formula, which gives what Welford's gives row by row, up to rounding. All of it
lies in buffers, so that it is saved, restored and never starts again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kedit_core.errors import InputError, MethodError

_FLOOR = 1e-6


class Normaliser(nn.Module):
    """``(x - mean) / (deviation + eps)`` of rows ``[R, width]``, with the statistics of all rows it was shown.

    Rows are counted only where :meth:`update` is called; normalising never changes the statistics. A deviation needs
    two rows. While it trains, a normaliser that has not counted them yet gives zeros, which is where a row alone is
    (the first edit of a training may have no other); otherwise it refuses.

    Args:
        eps: added to the deviation (of n - 1).
        floor: keep the deviation of each coordinate at ``1e-6 * max(1, |mean|)`` at least, so that one that was
            constant in training does not explode on other values.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    def __init__(self, width: int, eps: float, floor: bool = False) -> None:
        super().__init__()
        self.eps, self.floor = eps, floor
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("m2", torch.zeros(width, dtype=torch.float64))

    @staticmethod
    def summary(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean and sum of squared deviations of rows, as :meth:`merge` takes them; float64."""
        wide = rows.detach().double()
        count = torch.tensor(float(len(wide)), dtype=torch.float64, device=wide.device)
        if not len(wide):
            nothing = torch.zeros(wide.shape[1], dtype=torch.float64, device=wide.device)
            return count, nothing, nothing.clone()
        mean = wide.mean(0)
        return count, mean, (wide - mean).square().sum(0)

    def update(self, rows: Tensor) -> None:
        """Count rows ``[R, width]`` in."""
        self.merge(*self.summary(rows))

    def merge(self, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        """Count in rows of which only these are known (other processes')."""
        total = self.count + count
        share = count / total.clamp(min=1)
        away = mean - self.mean
        self.mean += away * share
        self.m2 += m2 + away.square() * self.count * share
        self.count.copy_(total)

    @property
    def deviation(self) -> Tensor:
        """``[width]``, of n - 1.

        Raises:
            MethodError: fewer than two rows have been counted.
        """
        if float(self.count) < 2:
            raise MethodError(
                f"an editor cannot normalise after {int(self.count)} rows; train it before it is used to edit"
            )
        found = (self.m2 / (self.count - 1)).sqrt()
        return torch.maximum(found, _FLOOR * self.mean.abs().clamp(min=1)) if self.floor else found

    def check(self) -> None:
        """Raises InputError for statistics that no training leaves: of fewer than two rows, or with squares below 0."""
        if float(self.count) < 2:
            raise InputError(
                f"the editor cannot normalise after {float(self.count):g} rows; train it before it is used to edit"
            )
        if not bool((self.m2 >= 0).all()):
            raise InputError("the editor's statistics have squares below 0; get the whole folder again")

    def forward(self, rows: Tensor) -> Tensor:
        """Normalised rows, in the rows' dtype."""
        if self.training and float(self.count) < 2:
            return torch.zeros_like(rows)
        mean, deviation = self.mean.to(rows), self.deviation.to(rows)
        normalised: Tensor = (rows - mean) / (deviation + self.eps)
        return normalised
