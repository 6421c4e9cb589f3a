"""One entry of the stack: a patch (or some provisional operations), ready to be on a live model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field
from torch import nn

from kedit_core.contract import Way
from kedit_core.errors import (
    BaseMismatchError,
    InputError,
    PatchFormatError,
    StackOrderError,
    UnknownNameError,
)
from kedit_core.forward.scope import PromptScope
from kedit_core.patches.format import EditPatch
from kedit_core.patches.hooks import Branch, Hung
from kedit_core.patches.kinds import LiveContext, ModuleKind, RouterKind, blamed, kind_error
from kedit_core.patches.operations import (
    LowRankDelta,
    ModuleOperation,
    Operation,
    RouterOperation,
    WeightOperation,
    check_shape,
)
from kedit_core.patches.places import Place, find_place, names_by_parameter
from kedit_core.patches.weights import exact_maths

FindKind = Callable[[str], type[Any]]


@define(eq=False)
class Attached:
    """A low-rank delta beside its module."""

    place: Place
    delta: LowRankDelta
    branch: Branch


@define(eq=False)
class Entry:
    """What one ``apply`` (or one ``add`` of a provisional writer) put on the model.

    Attributes:
        way: how its low-rank deltas are on.
        unverified: whether its base could not be compared, or was not by choice.
    """

    _patch: EditPatch | None
    way: Way
    unverified: bool = False
    merged: tuple[WeightOperation, ...] = ()
    attached: tuple[Attached, ...] = ()
    kinds: tuple[ModuleKind, ...] = ()
    routers: tuple[RouterKind, ...] = field(default=())

    @property
    def provisional(self) -> bool:
        """Whether it is there only until a block ends."""
        return self._patch is None

    @property
    def patch(self) -> EditPatch:
        """The patch; StackOrderError for provisional operations, which have none."""
        if self._patch is None:
            raise StackOrderError("provisional operations are no patch; they go when their block ends")
        return self._patch

    @property
    def id(self) -> str | None:
        """The patch's id; None for provisional operations."""
        return None if self._patch is None else self._patch.id

    def follow(self, model: nn.Module) -> None:
        """The model moved: branches and kinds go where their places are now."""
        for one in self.attached:
            one.place = find_place(model, one.place.name)
            one.branch = _branch(one.delta, one.place)
        for kind in self.kinds:
            with blamed(kind.operation.kind, type(kind), "failed in to_device"):
                kind.to_device({place: kind.live.device(place) for place in kind.operation.places})


def make_entry(
    patch: EditPatch | None,
    operations: Sequence[Operation],
    way: Way | None,
    model: nn.Module,
    scope: PromptScope,
    find_kind: FindKind,
    resources: Mapping[str, Path],
    unverified: bool = False,
    names: Mapping[int, Sequence[str]] | None = None,
) -> Entry:
    """An entry with everything it needs on the model's devices; the model is not touched.

    ``way`` None: merged, but attached where the weight is quantised. ``names`` are those :func:`names_by_parameter`
    gives now. Raises InputError, BaseMismatchError,
    UnknownNameError or PluginError.
    """
    names = names_by_parameter(model) if names is None else names
    places = {op.place: find_place(model, op.place, names) for op in operations if isinstance(op, WeightOperation)}
    merged: list[WeightOperation] = []
    attached: list[Attached] = []
    kinds: list[ModuleKind] = []
    routers: list[RouterKind] = []
    for op in operations:
        if isinstance(op, ModuleOperation):
            modules = {path: _module(model, path) for path in op.places}
            live = LiveContext(model=model, scope=scope, modules=modules, resources=resources)
            kinds.append(_make_kind(op, find_kind, ModuleKind, live))
        elif isinstance(op, RouterOperation):
            live = LiveContext(model=model, scope=scope, resources=resources)
            routers.append(_make_kind(op, find_kind, RouterKind, live))
        else:
            place = places[op.place]
            _check_live_shape(op, place)
            if _goes_beside(op, place, way):
                attached.append(_attach(op, place))
            else:
                merged.append(op)
    return Entry(
        patch=patch,
        way="attached" if attached or way == "attached" else "merged",
        unverified=unverified,
        merged=tuple(merged),
        attached=tuple(attached),
        kinds=tuple(kinds),
        routers=tuple(routers),
    )


def check_order(patch: EditPatch, on: Sequence[str]) -> None:
    """StackOrderError when a patch is among the ids ``on`` a model, or its parents are not, in their order."""
    if patch.id in on:
        raise StackOrderError(f"the patch {patch.id[:12]} is on this model already; a patch goes on once")
    if missing := [parent for parent in patch.parents if parent not in on]:
        raise StackOrderError(
            f"the patch {patch.id[:12]} was made on top of {missing[0][:12]}, which is not on this model; apply "
            f"{'that' if len(missing) == 1 else f'the {len(missing)} missing parents'} first"
        )
    if sorted(patch.parents, key=on.index) != list(patch.parents):
        raise StackOrderError(f"the parents of {patch.id[:12]} are on this model in another order; apply them anew")


def weights_wanted(entries: Iterable[Entry]) -> dict[str, tuple[WeightOperation, ...]]:
    """place -> merged operations in stack order; empty for places with branches only, which are watched."""
    wanted: dict[str, list[WeightOperation]] = {}
    for entry in entries:
        for operation in entry.merged:
            wanted.setdefault(operation.place, []).append(operation)
        for one in entry.attached:
            wanted.setdefault(one.place.name, [])
    return {name: tuple(operations) for name, operations in wanted.items()}


def modules_wanted(entries: Sequence[Entry]) -> dict[str, Hung]:
    """module -> its branches, then its module operations, each in stack order."""
    branches: dict[str, list[Branch]] = {}
    kinds: dict[str, list[ModuleKind]] = {}
    for entry in entries:
        for one in entry.attached:
            branches.setdefault(one.place.module, []).append(one.branch)
        for kind in entry.kinds:
            for place in kind.operation.places:
                kinds.setdefault(place, []).append(kind)
    paths = dict.fromkeys((*branches, *kinds))
    return {path: Hung(tuple(branches.get(path, ())), tuple(kinds.get(path, ()))) for path in paths}


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise BaseMismatchError(f"the model has no module {path!r}, where the patch has an operation") from None


def _check_live_shape(operation: WeightOperation, place: Place) -> None:
    try:
        check_shape(operation, place.shape, place.layout)
    except PatchFormatError as error:
        raise BaseMismatchError(f"the patch does not fit this model: {error}") from error


def _goes_beside(operation: WeightOperation, place: Place, way: Way | None) -> bool:
    if place.packed and (way == "merged" or not isinstance(operation, LowRankDelta)):
        raise InputError(
            f"{place.name!r} is quantised, and only a low-rank delta can be put beside it (way attached), not a "
            f"{operation.type} with way {way or 'merged'}"
        )
    return isinstance(operation, LowRankDelta) and (place.packed or way == "attached")


def _attach(operation: WeightOperation, place: Place) -> Attached:
    if not isinstance(operation, LowRankDelta):
        raise InputError(f"a {operation.type} cannot be attached; merge it")
    if place.branch_fault is not None:
        raise InputError(f"a branch cannot be attached at {place.name!r}: {place.branch_fault}; merge it instead")
    return Attached(place, operation, _branch(operation, place))


def _branch(delta: LowRankDelta, place: Place) -> Branch:
    with exact_maths(place.device):
        return Branch.of(delta, place.device, place.dtype)


def _make_kind(operation: Any, find_kind: FindKind, base: type[Any], live: LiveContext) -> Any:
    cls = find_kind(operation.kind)
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise kind_error(
            operation.kind, cls, f"is {cls!r}, not a {base.__name__}; its plugin must derive it from that class"
        )
    if operation.kind_version not in cls.versions:
        known = ", ".join(map(str, cls.versions))
        raise UnknownNameError(
            f"the patch needs version {operation.kind_version} of {operation.kind!r} and version {known} is installed; "
            "update the distribution that provides it"
        )
    with blamed(operation.kind, cls, "could not be put on"):
        return cls(operation, live)
