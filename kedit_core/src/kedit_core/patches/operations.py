"""The six operations a patch is made of.

Four change a parameter (``low_rank_delta``, ``dense_delta``, ``sparse_delta``, ``replace``), one hangs on modules
(``module``) and one stands before the whole model (``router``). An operation owns its tensors: they are copied when it
is built, contiguous, on the CPU, and never alias live weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from attrs import field, frozen
from torch import Tensor

from kedit_core.errors import PatchFormatError
from kedit_core.models.adapter import Layout
from kedit_core.patches import canonical
from kedit_core.patches.container import check_name, entry_of

Axis: TypeAlias = Literal["element", "row", "column"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
AXES: tuple[Axis, ...] = get_args(Axis)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_KIND = re.compile(r"[a-z0-9_]+([.-][a-z0-9_]+)*")
_CHUNK = 1 << 22


def shown(tensor: Tensor) -> str:
    """A tensor in a repr: its dtype and shape, not its numbers."""
    return f"<{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}>"


@frozen(eq=False)
class Owned:
    """A tensor that nobody else holds; building an operation from it takes it without a copy."""

    tensor: Tensor


def own(tensor: Tensor | Owned) -> Tensor:
    """A contiguous, detached CPU copy that shares memory with nothing; PatchFormatError for NaN or infinity."""
    if isinstance(tensor, Owned):
        mine = tensor.tensor
    elif isinstance(tensor, Tensor):
        with torch.inference_mode(False), torch.no_grad():
            mine = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            mine.copy_(tensor.detach())
    else:
        raise PatchFormatError(f"a patch holds tensors; it was given a {type(tensor).__name__}")
    if mine.is_floating_point():
        flat = mine.view(-1)
        for start in range(0, flat.numel(), _CHUNK):
            if not torch.isfinite(flat[start : start + _CHUNK]).all():
                raise PatchFormatError(
                    f"a tensor of shape {list(mine.shape)} holds NaN or infinity, which a patch never does; "
                    "look for the step that diverged"
                )
    return mine


def own_all(tensors: Mapping[str, Tensor | Owned]) -> dict[str, Tensor]:
    """:func:`own` for every tensor of a mapping; names are checked."""
    mine = {str(name): own(tensor) for name, tensor in tensors.items()}
    for name, tensor in mine.items():
        entry_of(name, tensor)
    return mine


def _floats(what: str, *tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype not in FLOATS:
            raise PatchFormatError(f"{what} has a tensor of {tensor.dtype}; weights change in floating point only")


def check_place(place: object, what: str) -> None:
    """PatchFormatError unless ``place`` is a dotted name."""
    if not isinstance(place, str):
        raise PatchFormatError(f"{what} has a place that is not a name: {canonical.shown(place)}")
    check_name(place)


def as_tuple(items: Iterable[Any]) -> tuple[Any, ...]:
    """A tuple of the items; a string, which is never meant as a sequence of names, is refused."""
    if isinstance(items, str):
        raise PatchFormatError(f"a sequence is needed where {canonical.shown(items)} was given; put it in a tuple")
    return tuple(items)


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise PatchFormatError(f"an operation's config is a mapping, not a {type(config).__name__}")
    copied: dict[str, Any] = canonical.plain(config, "config")
    return copied


@frozen(eq=False)
class LowRankDelta:
    """``left @ right`` added to a weight. left: ``[out, r]``, right: ``[r, in]``."""

    type: ClassVar[str] = "low_rank_delta"
    roles: ClassVar[tuple[str, ...]] = ("left", "right")

    place: str
    left: Tensor = field(converter=own, repr=shown)
    right: Tensor = field(converter=own, repr=shown)

    def __attrs_post_init__(self) -> None:
        check_place(self.place, self.type)
        what = f"{self.type} at {self.place!r}"
        _floats(what, self.left, self.right)
        if self.left.dim() != 2 or self.right.dim() != 2 or self.left.shape[1] != self.right.shape[0]:
            raise PatchFormatError(
                f"{what} needs left [out, r], right [r, in]; it has {list(self.left.shape)}, {list(self.right.shape)}"
            )
        if self.rank == 0:
            raise PatchFormatError(f"{what} has rank 0; leave the operation out")

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right}

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the delta is for a weight that is ``shape`` in [out, in] terms."""
        return shape == (self.left.shape[0], self.right.shape[1])

    def delta(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """The delta formed whole in ``dtype``: ``[out, in]``. Factors are cast first, then multiplied."""
        left, right = self.left.to(device, dtype), self.right.to(device, dtype)
        # one product per element: exact rounding whatever the library does with a matrix product of inner size 1
        return left * right if self.rank == 1 else left @ right


@frozen(eq=False)
class _Whole:
    """One number for every element of a parameter."""

    type: ClassVar[str]
    roles: ClassVar[tuple[str, ...]] = ("values",)

    place: str
    values: Tensor = field(converter=own, repr=shown)

    def __attrs_post_init__(self) -> None:
        check_place(self.place, self.type)
        _floats(f"{self.type} at {self.place!r}", self.values)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values}


@frozen(eq=False)
class DenseDelta(_Whole):
    """``values`` added to a parameter: ``[out, in]`` (or the parameter's own shape when it is stored ``as_stored``)."""

    type: ClassVar[str] = "dense_delta"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the delta is for a parameter that is ``shape`` in [out, in] terms."""
        return shape == tuple(self.values.shape)

    def delta(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """The delta in ``dtype``, of the shape of ``values``."""
        return self.values.to(device, dtype)


@frozen(eq=False)
class SparseDelta:
    """Values added to some elements, rows or columns of a parameter; zero elsewhere.

    axis ``element``: indices into the row-major flattened [out, in] parameter, values ``[n]``. ``row``: indices of out,
    values ``[n, in]``. ``column``: indices of in, values ``[out, n]``. indices: int64 ``[n]``, strictly increasing.
    A parameter of one dimension has elements and rows (values ``[n]``) only.
    """

    type: ClassVar[str] = "sparse_delta"
    roles: ClassVar[tuple[str, ...]] = ("indices", "values")

    place: str
    axis: Axis
    indices: Tensor = field(converter=own, repr=shown)
    values: Tensor = field(converter=own, repr=shown)

    def __attrs_post_init__(self) -> None:
        check_place(self.place, self.type)
        what = f"{self.type} at {self.place!r}"
        _floats(what, self.values)
        if not isinstance(self.axis, str) or self.axis not in AXES:
            raise PatchFormatError(f"{what} has axis {canonical.shown(self.axis)}; it is one of {', '.join(AXES)}")
        if self.indices.dtype != torch.int64 or self.indices.dim() != 1:
            raise PatchFormatError(f"{what} needs indices int64 [n]")
        if self.indices.numel() and (self.indices[0] < 0 or not (self.indices[1:] > self.indices[:-1]).all()):
            raise PatchFormatError(f"{what} needs indices that are sorted, unique and not negative")

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"indices": self.indices, "values": self.values}

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the delta is for a parameter that is ``shape`` in [out, in] terms."""
        count = self.indices.numel()
        limit: int
        expected: tuple[int, ...]
        if self.axis == "element":
            limit, expected = torch.Size(shape).numel(), (count,)
        elif self.axis == "row":
            limit, expected = (shape[0] if shape else 0), (count, *shape[1:])
        else:
            limit, expected = (shape[1] if len(shape) == 2 else -1), (*shape[:1], count)
        in_range = limit >= 0 and (count == 0 or int(self.indices[-1]) < limit)
        return in_range and tuple(self.values.shape) == expected

    def delta(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """The delta formed whole in ``dtype``: ``shape``, in [out, in] terms."""
        whole = torch.zeros(shape, dtype=dtype, device=device)
        indices, values = self.indices.to(device), self.values.to(device, dtype)
        if self.axis == "element":
            whole.view(-1)[indices] = values
        elif self.axis == "row":
            whole[indices] = values
        else:
            whole[:, indices] = values
        return whole


@frozen(eq=False)
class Replace(_Whole):
    """``values`` instead of the base, below all deltas: in the base's dtype and in its stored shape."""

    type: ClassVar[str] = "replace"


def _check_kind(kind: object, kind_version: object) -> None:
    if not isinstance(kind, str) or len(kind) > 128 or not _KIND.fullmatch(kind):
        raise PatchFormatError(
            f"{canonical.shown(kind)} is not a kind's name; use lower-case words joined by dots: 'grace.codebook'"
        )
    if type(kind_version) is not int or kind_version < 1:
        raise PatchFormatError(
            f"kind {kind!r} has version {canonical.shown(kind_version)}; versions are whole numbers from 1"
        )


@frozen(eq=False)
class ModuleOperation:
    """Hooks of an installed kind on some modules that share one decision.

    places: dotted module paths; config: JSON; tensors: the kind's own state, by role.
    """

    type: ClassVar[str] = "module"

    places: tuple[str, ...] = field(converter=as_tuple)
    kind: str
    kind_version: int = 1
    config: Mapping[str, Any] = field(factory=dict, converter=_plain_config)
    tensors: Mapping[str, Tensor] = field(factory=dict, converter=own_all)

    def __attrs_post_init__(self) -> None:
        _check_kind(self.kind, self.kind_version)
        for place in self.places:
            check_place(place, f"module operation {self.kind!r}")
        if not self.places or len(set(self.places)) != len(self.places):
            raise PatchFormatError(f"module operation {self.kind!r} needs one or more places, each once")


@frozen(eq=False)
class RouterOperation:
    """A router of an installed kind, before the whole model. config: JSON; tensors: the kind's own state, by role."""

    type: ClassVar[str] = "router"

    kind: str
    kind_version: int = 1
    config: Mapping[str, Any] = field(factory=dict, converter=_plain_config)
    tensors: Mapping[str, Tensor] = field(factory=dict, converter=own_all)

    def __attrs_post_init__(self) -> None:
        _check_kind(self.kind, self.kind_version)


Delta: TypeAlias = LowRankDelta | DenseDelta | SparseDelta
WeightOperation: TypeAlias = LowRankDelta | DenseDelta | SparseDelta | Replace
Operation: TypeAlias = WeightOperation | ModuleOperation | RouterOperation

WEIGHT_OPERATIONS = (LowRankDelta, DenseDelta, SparseDelta, Replace)


def out_in_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """A parameter's shape in [out, in] terms, from the shape and layout it is stored in."""
    return tuple(reversed(shape)) if layout == "in_out" else tuple(shape)


def check_shape(operation: WeightOperation, shape: tuple[int, ...], layout: Layout) -> None:
    """PatchFormatError unless the operation is for a parameter stored in this shape and layout."""
    if isinstance(operation, Replace):
        fits = tuple(operation.values.shape) == tuple(shape)
    else:
        fits = operation.fits(out_in_shape(shape, layout))
    if not fits:
        held = {role: list(tensor.shape) for role, tensor in operation.tensors.items()}
        raise PatchFormatError(
            f"{operation.type} at {operation.place!r} holds {held}, which does not fit a parameter stored as "
            f"{list(shape)} ({layout})"
        )
