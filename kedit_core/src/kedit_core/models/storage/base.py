"""Where a parameter's value lives, and how it is read, put in and given back: one class for each way.

Nothing else in kedit asks whether a weight is offloaded, spread over processes or packed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, TypeAlias

import torch
from attrs import evolve
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.models.storage.marks import Fingerprint

Kind: TypeAlias = Literal["plain", "offloaded", "sharded", "packed"]
Held: TypeAlias = Tensor | tuple[Tensor | None, ...]
"""What was in a parameter: its tensor, or its entries in a map of offloaded weights (None: in its file only)."""


class Storage(ABC):
    """One parameter of a live model.

    Attributes:
        owner, leaf: the module that holds it, and its name in there.
    """

    kind: ClassVar[Kind]

    def __init__(self, owner: nn.Module, leaf: str) -> None:
        self.owner = owner
        self.leaf = leaf
        self._first = self.parameter

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that stands in the model now. Raises InputError when there is none any more."""
        found = self.owner._parameters.get(self.leaf)
        if found is None:
            raise InputError(f"the {type(self.owner).__name__} has no parameter {self.leaf!r} any more")
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight."""
        return self.parameter.dtype

    @property
    def device(self) -> torch.device:
        """Where its module computes."""
        return self.parameter.device

    @property
    def there(self) -> bool:
        """Whether it is still where it was found, and in the same way."""
        return self.owner._parameters.get(self.leaf) is self._first

    @property
    def delta_fault(self) -> str | None:
        """Why a delta cannot be merged into it, or None."""
        return None

    @property
    def branch_fault(self) -> str | None:
        """Why no low-rank branch can stand beside its module, or None."""
        return None

    @abstractmethod
    def mark(self) -> Fingerprint:
        """What is in it now, without reading it."""

    @abstractmethod
    def hold(self) -> Held:
        """What is in it now, for :meth:`restore`."""

    def outdated(self, held: Held, mark: Fingerprint) -> bool:
        """Whether what ``held`` holds is not any more what it was when the mark was ``mark``: a file somebody wrote."""
        return False

    @abstractmethod
    def read(self, held: Held) -> Tensor:
        """The value that ``held`` holds (this process's part of it); often an alias, so never write to it."""

    def whole(self, held: Held) -> Tensor:
        """All of the value that ``held`` holds; an alias where :meth:`read` is."""
        return self.read(held)

    def cut(self, whole: Tensor) -> Tensor:
        """This process's part of a whole value."""
        return whole

    @abstractmethod
    def put(self, value: Tensor) -> None:
        """Another value into it (this process's part), kept by reference where it can be."""

    @abstractmethod
    def restore(self, held: Held) -> None:
        """What was in it back into it."""


class Plain(Storage):
    """A tensor in memory: values are swapped by reference, and the parameter itself stays."""

    kind = "plain"

    def mark(self) -> Fingerprint:
        """That of the parameter."""
        return Fingerprint.of(self._first)

    def hold(self) -> Tensor:
        """The very storage."""
        return self._first.data

    def read(self, held: Held) -> Tensor:
        """``held`` itself."""
        return tensor_of(held)

    def put(self, value: Tensor) -> None:
        """Give the parameter this storage."""
        if self._first.data_ptr() != value.data_ptr():
            self._first.data = value

    def restore(self, held: Held) -> None:
        """Give the parameter its own storage back."""
        self.put(tensor_of(held))


class Packed(Storage):
    """A weight that is quantised, or otherwise not a plain floating-point tensor. It is never written to."""

    kind = "packed"

    @property
    def delta_fault(self) -> str | None:
        """A packed weight has no room for a delta."""
        return "is quantised, so nothing can be merged into it exactly; attach a low-rank delta beside it"

    def mark(self) -> Fingerprint:
        """That of the parameter and of the tensors it is made of."""
        tensor = self._first
        return evolve(Fingerprint.of(tensor), parts=tuple(map(Fingerprint.of, _inside(tensor))))

    def hold(self) -> Tensor:
        """The packed value."""
        return self._first.data

    def read(self, held: Held) -> Tensor:
        """The packed value: its numbers are not the weight's."""
        return tensor_of(held)

    def put(self, value: Tensor) -> None:
        """Never done: raises InputError."""
        raise InputError(f"the {type(self.owner).__name__}'s {self.leaf} {self.delta_fault}")

    def restore(self, held: Held) -> None:
        """Nothing: what is in it was never taken out."""


def tensor_of(held: Held) -> Tensor:
    """What was held of a weight that is one tensor."""
    if isinstance(held, tuple):
        raise InputError("an entry of a map of weights was given where a tensor is held")
    return held


def _inside(tensor: Tensor) -> list[Tensor]:
    """The tensors that a wrapper is made of, those inside these too; none for a tensor with a storage of its own."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return []
    found: list[Tensor] = []
    for name in flatten()[0]:
        part = getattr(tensor, name)
        if isinstance(part, Tensor):
            found += _inside(part) or [part]
    return found


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that hold a tensor's numbers: itself, or what a packed one is made of."""
    return _inside(tensor) or [tensor]


def scales_of(owner: nn.Module, tensor: Tensor) -> list[Tensor]:
    """The scales that bitsandbytes keeps beside a packed weight (its own saving would change the layer)."""
    state = getattr(tensor, "quant_state", None)
    second = getattr(state, "state2", None)
    layer = getattr(owner, "state", None)
    # those of eight bits move from the weight into the layer at its first run
    eight = getattr(tensor, "SCB", None)
    eight = getattr(layer, "SCB", None) if eight is None else eight
    found = (eight, getattr(state, "absmax", None), getattr(second, "absmax", None), getattr(state, "offset", None))
    return [each for each in found if isinstance(each, Tensor)]


def is_packed(parameter: Tensor) -> bool:
    """Whether a tensor is not a plain one of float16, bfloat16, float32 or float64."""
    dtype = parameter.dtype
    wrapped = type(parameter) is not nn.Parameter and type(parameter.data) is not Tensor
    return wrapped or not dtype.is_floating_point or dtype.itemsize < 2
