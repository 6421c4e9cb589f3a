"""A patch's names found on a live model: which parameter, who owns it, how it is stored, whether it can be written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.models.adapter import Layout
from kedit_core.models.parameters import features, is_projection, layout_of, owner_of
from kedit_core.patches.operations import FLOATS, ModuleOperation, Operation, RouterOperation

_PLAIN = (nn.Parameter, Tensor)  # what holds nothing but a plain tensor


@frozen(eq=False)
class Place:
    """A parameter of a live model.

    Attributes:
        name: its first dotted name.
        parameter, owner: the parameter and the module it belongs to.
        module: the owner's dotted name.
        layout, aliases: as in a patch's manifest.
        shape: as stored; of a packed weight, as it would be stored unpacked.
        packed: whether it is quantised or otherwise not a plain floating-point tensor.
    """

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    module: str
    layout: Layout
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    packed: bool

    @property
    def branch_fault(self) -> str | None:
        """Why a low-rank branch cannot be attached beside this weight, or None."""
        if not is_projection(self.owner) or not self.name.endswith("weight"):
            return f"its owner is a {type(self.owner).__name__}, and a branch stands beside a Linear or Conv1D only"
        if self.aliases:
            return f"it is tied to {self.aliases[0]!r}, and a branch would change only one of its uses"
        return None


@frozen
class Fingerprint:
    """Where a tensor is and how often it was written: what tells that nobody else touched it."""

    address: int
    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    version: int | None

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

    def same_storage(self, other: Fingerprint) -> bool:
        """Equal but for the version."""
        return (self.address, self.dtype, self.device, self.shape, self.strides) == (
            other.address,
            other.dtype,
            other.device,
            other.shape,
            other.strides,
        )


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was written; None for one made under inference_mode, which counts no versions."""
    try:
        return tensor._version
    except RuntimeError:
        # is_inference() is no help: it speaks of what a parameter holds now, not of what it was made as
        return None


def names_by_parameter(model: nn.Module) -> dict[int, list[str]]:
    """id of a parameter -> all its names, first one first."""
    names: dict[int, list[str]] = {}
    for name, parameter in _named(model, "_parameters", "named_parameters"):
        names.setdefault(id(parameter), []).append(name)
    return names


def _named(model: nn.Module, held: str, listed: str) -> list[tuple[str, Tensor]]:
    """What ``named_parameters(remove_duplicate=False)`` gives (or ``named_buffers``), several times faster."""
    if getattr(type(model), listed) is not getattr(nn.Module, listed):
        return list(getattr(model, listed)(remove_duplicate=False))
    found: list[tuple[str, Tensor]] = []

    def visit(module: nn.Module, prefix: str) -> None:
        for name, tensor in getattr(module, held).items():
            if tensor is not None:
                found.append((prefix + name, tensor))
        for name, child in module._modules.items():
            if child is not None:
                visit(child, f"{prefix}{name}.")

    visit(model, "")
    return found


def find_place(model: nn.Module, name: str, names: Mapping[int, Sequence[str]] | None = None) -> Place:
    """The parameter ``name``, which must be the first of its names; ``names`` as :func:`names_by_parameter` gives them,
    for those who look for many.

    Raises InputError when there is none, when ``name`` is an alias, and for weights that cannot be handled exactly:
    offloaded to disk or to the ``meta`` device, or spread over several processes.
    """
    owner, leaf = owner_of(model, name)
    parameter = owner._parameters[leaf]
    if parameter is None:
        raise InputError(f"{name!r} is empty in this model; there is nothing to change")
    first, *aliases = (names or names_by_parameter(model))[id(parameter)]
    if first != name:
        raise InputError(f"{name!r} is tied to {first!r}; name it by its first name, {first!r}")
    if parameter.is_meta:
        raise InputError(f"{name!r} is offloaded (on the meta device), where a change would be lost; load it in memory")
    if hasattr(parameter, "placements") and hasattr(parameter, "device_mesh"):
        raise InputError(f"{name!r} is spread over several processes (DTensor), which kedit cannot edit yet")
    packed = not (type(parameter.data) is Tensor and parameter.dtype in FLOATS)
    layout = layout_of(model, name)
    shape = tuple(parameter.shape)
    if packed:
        if not is_projection(owner):
            raise InputError(f"{name!r} is quantised in a {type(owner).__name__}, whose size kedit cannot tell")
        out_in = features(owner)
        shape = out_in[::-1] if layout == "in_out" else out_in
    return Place(name, parameter, owner, name.rpartition(".")[0], layout, tuple(aliases), shape, packed)


def parameters_of(model: nn.Module, places: Iterable[Operation | str]) -> tuple[str, ...]:
    """First names of the parameters at these operations or dotted names, each once; of a module, all its parameters."""
    wanted: list[str] = []
    for place in places:
        if isinstance(place, ModuleOperation):
            wanted += place.places
        elif not isinstance(place, RouterOperation):
            wanted.append(place if isinstance(place, str) else place.place)
    modules = dict(model.named_modules())
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, None] = {}
    for name in wanted:
        inside = [first[id(parameter)] for parameter in modules[name].parameters()] if name in modules else [name]
        found |= dict.fromkeys(inside)
    return tuple(found)


def sharing_memory(model: nn.Module, places: Iterable[Place]) -> Iterator[tuple[str, str]]:
    """Pairs of a place and another tensor of the model that overlaps it in memory without being tied to it."""
    wanted = [(place, _extent(place.parameter)) for place in places if not place.packed]
    if not wanted:
        return
    tensors = (*_named(model, "_parameters", "named_parameters"), *_named(model, "_buffers", "named_buffers"))
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
