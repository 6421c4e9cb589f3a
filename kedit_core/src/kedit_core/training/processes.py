"""The processes of one training: one, or several that accelerate has started."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Processes:
    """This process alone; what several do together (:class:`kedit_core.training.several.Several`) has the same face.

    Every method but the properties is collective: all processes must call it, in the same order.

    Attributes:
        rank: of this process, from 0. count: of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and decides."""
        return self.rank == 0

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes in rank order; their shapes may differ in the first dimension."""
        return [tensor]

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over processes, the same bits everywhere."""
        return tensor

    def collect(self, value: T) -> list[T]:
        """The picklable values of all processes in rank order."""
        return [value]

    def told(self, value: T) -> T:
        """The first process's value."""
        return value

    def wait(self) -> None:
        """Until all processes are here."""

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return any(self.collect(flag))

    def device(self, wanted: Any = None) -> Any:
        """The device this process is to use: the one asked for, or None for the model's own."""
        return torch.device(wanted) if wanted is not None else None

    def close(self) -> None:
        """Leave the group; nothing is exchanged afterwards."""
