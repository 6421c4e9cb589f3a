"""Losses of a training's steps: read from the device as seldom as may be, and what follows from them.

A look at a number on an accelerator makes the host wait for all that was asked of it before. Only a stop rule has to
know a loss before the next step; without one losses are read a few steps at a time.
"""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import MethodError

_LOOK_EVERY = 16


def look_every(device: torch.device) -> int:
    """How many steps are made between two looks at the losses, where no step depends on one."""
    return 1 if device.type == "cpu" else _LOOK_EVERY


def finite(loss: float, steps: int, remedy: str) -> float:
    """The loss; MethodError with the remedy when it is not finite."""
    if not math.isfinite(loss):
        raise MethodError(f"the loss is {loss} after {steps} steps; {remedy}")
    return loss


@frozen(eq=False)
class _Reading:
    loss: Tensor
    size: int
    steps: int


class Readings:
    """The losses of a training in epochs, each taken before its step.

    Args:
        facts: of an epoch.
        stop_loss: a loss below makes no step, and an epoch whose mean is, is the last; 0 makes all steps.
        remedy: what to do when a loss is not finite.

    Attributes:
        steps: how many were made.

    All methods raise MethodError when a loss that they look at is not finite.
    """

    def __init__(self, facts: int, stop_loss: float, remedy: str) -> None:
        self.facts, self.stop_loss, self.remedy = facts, stop_loss, remedy
        self.steps = 0
        self._waiting: list[_Reading] = []
        self._sums: list[float] = []  # losses that were looked at, times the facts of each
        self._ends: list[int] = []  # of the epochs, among all losses
        self._last = math.inf

    def wants_step(self, loss: Tensor, size: int) -> bool:
        """Take the mean loss of ``size`` facts; whether a step is to be made against it, which is then counted."""
        self._waiting.append(_Reading(loss.detach().double(), size, self.steps))
        if self.stop_loss > 0 or len(self._waiting) >= look_every(loss.device):
            self._look()
        wanted = self.stop_loss <= 0 or self._last >= self.stop_loss
        self.steps += wanted
        return wanted

    def end_epoch(self) -> bool:
        """Whether the epoch that ends here was the last, by its mean loss."""
        self._ends.append(len(self._sums) + len(self._waiting))
        return self.stop_loss > 0 and self._mean(len(self._ends) - 1) < self.stop_loss

    def epochs(self) -> tuple[float, ...]:
        """Mean loss of each epoch over its facts."""
        self._look()
        return tuple(self._mean(epoch) for epoch in range(len(self._ends)))

    def _mean(self, epoch: int) -> float:
        start = self._ends[epoch - 1] if epoch else 0
        return sum(self._sums[start : self._ends[epoch]]) / self.facts

    def _look(self) -> None:
        if not self._waiting:
            return
        found = torch.stack([each.loss for each in self._waiting]).tolist()
        for loss, each in zip(found, self._waiting, strict=True):
            self._last = finite(loss, each.steps, self.remedy)
            self._sums.append(loss * each.size)
        self._waiting = []
