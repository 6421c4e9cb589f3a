"""A patch's names found on a live model: which parameter, who owns it, how it is stored, whether it can be written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.models.adapter import Layout
from kedit_core.models.parameters import features, is_projection, layout_of, owner_of
from kedit_core.models.storage import Fingerprint, Storage, named_tensors, names_by_parameter, storage_of, version_of
from kedit_core.patches.operations import ModuleOperation, Operation, RouterOperation

__all__ = [
    "Fingerprint",
    "Place",
    "dotted",
    "find_place",
    "names_by_parameter",
    "parameters_of",
    "sharing_memory",
    "version_of",
]

_PLAIN = (nn.Parameter, Tensor)  # what holds nothing but a plain tensor


@frozen(eq=False)
class Place:
    """A parameter of a live model.

    Attributes:
        name: its first dotted name.
        owner: the module it belongs to.
        module: the owner's dotted name.
        layout, aliases: as in a patch's manifest.
        shape: as stored; of a packed weight, as it would be stored unpacked.
        storage: where its value lives.
    """

    name: str
    owner: nn.Module
    module: str
    layout: Layout
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    storage: Storage

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter itself; empty where it is offloaded, a part of it where it is spread over processes."""
        return self.storage.parameter

    @property
    def packed(self) -> bool:
        """Whether it is quantised or otherwise not a plain floating-point tensor."""
        return self.storage.kind == "packed"

    @property
    def dtype(self) -> torch.dtype:
        """The weight's dtype."""
        return self.storage.dtype

    @property
    def device(self) -> torch.device:
        """Where its module computes."""
        return self.storage.device

    @property
    def branch_fault(self) -> str | None:
        """Why a low-rank branch cannot be attached beside this weight, or None."""
        if not is_projection(self.owner) or not self.name.endswith("weight"):
            return f"its owner is a {type(self.owner).__name__}, and a branch stands beside a Linear or Conv1D only"
        if self.aliases:
            return f"it is tied to {self.aliases[0]!r}, and a branch would change only one of its uses"
        return self.storage.branch_fault


def find_place(model: nn.Module, name: str, names: Mapping[int, Sequence[str]] | None = None) -> Place:
    """The parameter ``name``, which must be the first of its names; ``names`` as :func:`names_by_parameter` gives them,
    for those who look for many.

    Raises InputError when there is none, when ``name`` is an alias, and for weights that cannot be handled exactly; see
    :func:`~kedit_core.models.storage.storage_of`.
    """
    owner, leaf = owner_of(model, name)
    if (parameter := owner._parameters[leaf]) is None:
        raise InputError(f"{name!r} is empty in this model; there is nothing to change")
    first, *aliases = (names or names_by_parameter(model))[id(parameter)]
    if first != name:
        raise InputError(f"{name!r} is tied to {first!r}; name it by its first name, {first!r}")
    storage = storage_of(model, name, aliases)
    layout = layout_of(model, name)
    shape = tuple(parameter.shape)
    if storage.kind == "packed":
        if not is_projection(owner):
            raise InputError(f"{name!r} is quantised in a {type(owner).__name__}, whose size kedit cannot tell")
        out_in = features(owner)
        shape = out_in[::-1] if layout == "in_out" else out_in
    return Place(name, owner, name.rpartition(".")[0], layout, tuple(aliases), shape, storage)


def dotted(places: Iterable[Operation | str]) -> list[str]:
    """The dotted names of parameters and modules at these operations or names; a router is at none."""
    found: list[str] = []
    for place in places:
        if isinstance(place, ModuleOperation):
            found += place.places
        elif not isinstance(place, RouterOperation):
            found.append(place if isinstance(place, str) else place.place)
    return found


def parameters_of(model: nn.Module, places: Iterable[Operation | str]) -> tuple[str, ...]:
    """First names of the parameters at these operations or dotted names, each once; of a module, all its parameters."""
    modules = dict(model.named_modules())
    names = names_by_parameter(model)
    found: dict[str, None] = {}
    for name in dotted(places):
        inside = [names[id(parameter)][0] for parameter in modules[name].parameters()] if name in modules else [name]
        found |= dict.fromkeys(inside)
    return tuple(found)


def sharing_memory(model: nn.Module, places: Iterable[Place]) -> Iterator[tuple[str, str]]:
    """Pairs of a place and another tensor of the model that overlaps it in memory without being tied to it."""
    wanted = [(place, _extent(place.parameter)) for place in places if place.storage.kind == "plain"]
    if not wanted:
        return
    tensors = (
        *named_tensors(model, "_parameters", "named_parameters"),
        *named_tensors(model, "_buffers", "named_buffers"),
    )
    seen: set[int] = set()
    for name, tensor in tensors:
        if id(tensor) in seen:
            continue  # another name of a tied one
        seen.add(id(tensor))
        if (type(tensor) not in _PLAIN and type(tensor.data) is not Tensor) or tensor.layout != torch.strided:
            continue
        device, start, end = _extent(tensor)
        for place, (own_device, own_start, own_end) in wanted:
            if start < own_end and own_start < end and device == own_device and tensor is not place.parameter:
                yield place.name, name


def _extent(tensor: Tensor) -> tuple[torch.device, int, int]:
    size = tensor.numel()
    if size == 0 or tensor.is_meta:
        return tensor.device, 0, 0
    if not tensor.is_contiguous():
        size = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return tensor.device, start, start + size * tensor.element_size()
