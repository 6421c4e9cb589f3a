"""Several processes at one pass: each takes its part of the text, and the sums are added up.

Works under ``torchrun`` and ``accelerate launch``, which start the processes and tell each who it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from attrs import frozen
from torch import Tensor


@frozen
class Ranks:
    """Which of how many processes this is; the only one unless torch.distributed was set up."""

    rank: int = 0
    count: int = 1

    @classmethod
    def now(cls) -> Ranks:
        """As torch.distributed says."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Whether this one writes what all have found."""
        return self.rank == 0

    @property
    def suffix(self) -> str:
        """For names of files that each process has for itself."""
        return "" if self.count == 1 else f"-{self.rank}of{self.count}"

    def mine(self, number: int) -> bool:
        """Whether part ``number`` is this process's."""
        return number % self.count == self.rank

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place; a tensor stays on the device that it is on."""
        if self.count > 1:
            where = _meeting_place()
            for tensor in tensors:
                moved = tensor.to(where)
                dist.all_reduce(moved)
                if moved is not tensor:
                    tensor.copy_(moved)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            where = _meeting_place()
            # without a device NCCL takes the current one, which is GPU 0 in every process that has set none
            dist.barrier(device_ids=None if where.type == "cpu" else [where.index])


@contextmanager
def processes() -> Iterator[Ranks]:
    """Set torch.distributed up when a launcher started several processes, for the length of a block.

    Sums meet on the CPU (gloo), on GPUs too: it happens once, at the end of a pass, and needs no GPU for each process.
    What was set up already is used as it is, and left.
    """
    if Ranks.now().count > 1 or int(os.environ.get("WORLD_SIZE", "1")) <= 1 or not dist.is_available():
        yield Ranks.now()
        return
    dist.init_process_group("gloo")
    try:
        yield Ranks.now()
    finally:
        dist.destroy_process_group()


def own_device() -> str | None:
    """The GPU that the launcher means for this process, or None."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or int(os.environ.get("WORLD_SIZE", "1")) <= 1 or not torch.cuda.is_available():
        return None
    return f"cuda:{int(local) % torch.cuda.device_count()}"


def _meeting_place() -> torch.device:
    """Where the group can add tensors up: the CPU, unless it was set up for GPUs alone (NCCL); then this one's GPU."""
    if "cpu:" in dist.get_backend_config():
        return torch.device("cpu")
    return torch.device(own_device() or f"cuda:{torch.cuda.current_device()}")
