"""Marks: what tells, without reading a weight, that nobody else wrote to it, moved it or exchanged it."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor


@frozen
class Fingerprint:
    """Where a tensor is and how often it was written: what tells that nobody else touched it.

    Attributes:
        parts: the same of the tensors that a packed one is made of.
        source: the state of the file that a tensor not in memory is read from.
    """

    address: int
    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    version: int | None
    parts: tuple[Fingerprint, ...] = ()
    source: tuple[Any, ...] = ()

    @classmethod
    def of(cls, tensor: Tensor) -> Fingerprint:
        """The fingerprint of a tensor now."""
        strides = tuple(tensor.stride()) if tensor.layout == torch.strided else ()
        try:
            address = tensor.data_ptr()
        except RuntimeError:
            # wrapper subclasses of quantisation libraries have no storage of their own
            address = id(tensor)
        return cls(address, tensor.dtype, tensor.device, tuple(tensor.shape), strides, version_of(tensor))

    @classmethod
    def of_file(cls, tensor: Tensor, source: tuple[Any, ...]) -> Fingerprint:
        """The fingerprint of a value that is in a file in the state ``source``; ``tensor`` has its dtype and shape."""
        return cls(0, tensor.dtype, torch.device("cpu"), tuple(tensor.shape), (), None, (), source)

    def same_storage(self, other: Fingerprint) -> bool:
        """Equal but for the versions."""
        return self._storage() == other._storage()

    def _storage(self) -> tuple[Any, ...]:
        inside = tuple(part._storage() for part in self.parts)
        return (self.address, self.dtype, self.device, self.shape, self.strides, self.source, inside)


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was written; None for one made under inference_mode, which counts no versions."""
    try:
        return tensor._version
    except RuntimeError:
        # is_inference() is no help: it speaks of what a parameter holds now, not of what it was made as
        return None
