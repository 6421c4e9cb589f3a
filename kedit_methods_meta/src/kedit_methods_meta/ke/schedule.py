"""How KE's learning rates rise and fall."""

from __future__ import annotations

from attrs import frozen
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@frozen
class _WarmLinear:
    warmup: int
    updates: int

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return step / self.warmup
        return max(0.0, (self.updates - step) / max(1, self.updates - self.warmup))


def warm_linear(optimizer: Optimizer, warmup: int, updates: int) -> LambdaLR:
    """Every group's rate times ``step / warmup`` at first, then falling in a straight line to 0 at ``updates``."""
    factor = _WarmLinear(warmup, updates)
    return LambdaLR(optimizer, lambda step: factor(step))
