"""Weights that several processes hold between them: DTensors, as FSDP2 and tensor parallelism make them.

A value is copied into this process's part, which stays where it is (FSDP gathers from that very memory). What a part
must be is cut from the whole value, formed alike by every process, so its bits are those of a model in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from attrs import evolve
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.models.storage.base import Held, Storage, tensor_of
from kedit_core.models.storage.marks import Fingerprint, version_of


class Sharded(Storage):
    """A parameter that is a DTensor.

    Memory: the base's part is copied once, and kept; forming a value takes the whole delta for a moment.
    """

    kind = "sharded"

    def __init__(self, owner: nn.Module, leaf: str, gathered: bool) -> None:
        super().__init__(owner, leaf)
        self._gathered = gathered
        spread: Any = self._first
        self.mesh, self.placements = spread.device_mesh, spread.placements
        self._shown: Tensor | None = None

    @property
    def local(self) -> Tensor:
        """This process's part."""
        return local_part(self._first)

    @property
    def delta_fault(self) -> str | None:
        """Placements that a whole value cannot be cut by: partial sums, and the interleaved ones of FSDP with TP."""
        from torch.distributed.tensor import Replicate, Shard

        for placement in self.placements:
            if type(placement) not in (Replicate, Shard):
                return f"is spread as {placement!r}, which kedit cannot cut a value for; gather the model to edit it"
        return None

    @property
    def branch_fault(self) -> str | None:
        """Inside a tensor-parallel layer a module sees parts of its input or output."""
        split = [placement for placement in self.placements if not placement.is_replicate()]
        if self._gathered and len(split) <= 1:
            return None
        return "it is computed in parts by several processes (tensor parallelism), and a branch needs whole inputs"

    def mark(self) -> Fingerprint:
        """That of this process's part, and of the whole that it belongs to."""
        return mark_of_part(self._first)

    def hold(self) -> Tensor:
        """A copy of this process's part, since that memory is going to be written."""
        self._shown = self.local.clone()
        return self._shown

    def read(self, held: Held) -> Tensor:
        """``held`` itself: this process's part."""
        return tensor_of(held)

    def whole(self, held: Held) -> Tensor:
        """All parts together; every process has to ask, in the same order. Memory: the whole weight, on each."""
        from torch.distributed.tensor import DTensor

        spread = DTensor.from_local(
            tensor_of(held),
            self.mesh,
            self.placements,
            run_check=False,
            shape=self._first.shape,
            stride=self._first.stride(),
        )
        return whole_of(spread)

    def cut(self, whole: Tensor) -> Tensor:
        """This process's part of a whole value; nothing is sent."""
        from torch.distributed.tensor import distribute_tensor

        with torch.no_grad():
            part: Tensor = distribute_tensor(whole, self.mesh, self.placements, src_data_rank=None).to_local()
        if part.shape != self.local.shape:
            raise InputError(f"a weight cannot be cut as {self.placements}; gather the model before it is edited")
        return part

    def put(self, value: Tensor) -> None:
        """Copy a part into its memory."""
        if self._shown is not value:
            self._shown = None
            with torch.no_grad():
                self.local.copy_(value)
            self._shown = value

    def restore(self, held: Held) -> None:
        """Copy the base's part back."""
        self.put(tensor_of(held))


def local_part(spread: Tensor) -> Tensor:
    """This process's part of a DTensor: the very memory."""
    with torch.no_grad():
        part: Tensor = spread.to_local()  # type: ignore[attr-defined]
        return part.detach()


def mark_of_part(spread: Tensor) -> Fingerprint:
    """The mark of a DTensor's part. What writes to the DTensor, as optimisers do, counts in its own version alone."""
    whole = Fingerprint(0, spread.dtype, spread.device, tuple(spread.shape), (), version_of(spread))
    return evolve(Fingerprint.of(local_part(spread)), parts=(whole,))


def whole_of(spread: Tensor) -> Tensor:
    """All parts of a DTensor together; every process has to ask."""
    with torch.no_grad():
        gathered: Tensor = spread.full_tensor()  # type: ignore[attr-defined]
        return gathered


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return type(tensor) is not nn.Parameter and hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def reshard(model: nn.Module) -> None:
    """Have every FSDP module give up the gathered weights that it still holds from its last run.

    Only its own part is written to, so a later run must gather anew. Does nothing in a single process.
    """
    if _several():
        for module in gathering(model):
            module.reshard()


def gathering(model: nn.Module) -> Iterator[Any]:
    """The modules that FSDP gathers weights for."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            yield module


def is_gathered(model: nn.Module, path: str) -> bool:
    """Whether FSDP gathers the weights of the module of that name before it runs."""
    from torch.distributed.fsdp import FSDPModule

    steps = path.split(".") if path else []
    above = [model.get_submodule(".".join(steps[:depth])) for depth in range(len(steps) + 1)]
    return any(isinstance(module, FSDPModule) for module in above)


def meshes(model: nn.Module) -> list[Any]:
    """The device meshes that the model's parameters are spread over, in their order; none in a single process."""
    if not _several():
        return []
    found: list[Any] = []
    for parameter in model.parameters():
        if is_spread(parameter):
            mesh = parameter.device_mesh  # type: ignore[attr-defined]
            if not any(mesh == other for other in found):
                found.append(mesh)
    return found


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
