"""Several processes that train together, started by ``accelerate launch`` or ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from kedit_core.errors import KeditError
from kedit_core.extras import needed
from kedit_core.training.processes import Processes

T = TypeVar("T")


def processes_here() -> Processes:
    """The processes that this one was started with: alone, unless ``WORLD_SIZE`` in the environment says otherwise.

    Raises MissingExtraError when there are several and accelerate is not installed.
    """
    return Several() if int(os.environ.get("WORLD_SIZE") or 1) > 1 else Processes()


class Several(Processes):
    """Exchange through accelerate: NCCL where there are GPUs, gloo on CPUs.

    Joins the process group when made; :meth:`close` leaves it.
    """

    def __init__(self) -> None:
        accelerate = needed("accelerate", "training in several processes", "kedit-core[train]")
        self._operations = needed("accelerate.utils", "training in several processes", "kedit-core[train]")
        self._state = accelerate.PartialState(cpu=not torch.cuda.is_available())
        self.rank, self.count = int(self._state.process_index), int(self._state.num_processes)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """As :meth:`Processes.gather`: padded to the longest, exchanged, and cut again."""
        here = tensor.detach().to(self._state.device)
        lengths = self.collect(len(here))
        padded = here.new_zeros((max(lengths), *here.shape[1:]))
        padded[: len(here)] = here
        with _together():
            every = self._operations.gather(padded.contiguous())
        parts = every.split(max(lengths)) if max(lengths) else [here] * self.count
        return [part[:length].to(tensor.device) for part, length in zip(parts, lengths, strict=True)]

    def mean(self, tensor: Tensor) -> Tensor:
        """As :meth:`Processes.mean`: one all-reduce."""
        here = tensor.detach().to(self._state.device, copy=True)
        with _together():
            found: Tensor = self._operations.reduce(here, reduction="mean")
        return found.to(tensor.device)

    def collect(self, value: T) -> list[T]:
        """As :meth:`Processes.collect`."""
        with _together():
            found: list[T] = self._operations.gather_object([value])
        return found

    def told(self, value: T) -> T:
        """As :meth:`Processes.told`."""
        held = [value]
        with _together():
            self._operations.broadcast_object_list(held)
        return held[0]

    def wait(self) -> None:
        """As :meth:`Processes.wait`."""
        with _together():
            self._state.wait_for_everyone()

    def any(self, flag: bool) -> bool:
        """As :meth:`Processes.any`: one small all-reduce."""
        return bool(self.mean(torch.tensor([float(flag)]))[0] > 0)

    def device(self, wanted: Any = None) -> Any:
        """The device asked for; else this process's own GPU, or the CPU."""
        return torch.device(wanted) if wanted is not None else self._state.device

    def close(self) -> None:
        """Leave the process group."""
        self._state.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """An exchange; KeditError when another process has gone."""
    try:
        yield
    except RuntimeError as error:
        raise KeditError(
            "another process of this training has ended, so this one ends too; see what that one said, then go on with "
            "--resume"
        ) from error
