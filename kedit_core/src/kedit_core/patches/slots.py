"""The parameters that the stack has written: their bases, kept by reference, and what is in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import define
from torch import Tensor, nn

from kedit_core.errors import InputError, StackDisturbedError
from kedit_core.models.storage import Held, Sharded, repacked
from kedit_core.patches.baseline import BaseDigests
from kedit_core.patches.digests import dtype_name, tensor_digest
from kedit_core.patches.operations import Replace, WeightOperation
from kedit_core.patches.places import Fingerprint, Place, find_place, names_by_parameter, sharing_memory
from kedit_core.patches.weights import Cut, form_weight


@define(eq=False)
class Slot:
    """One parameter under the stack.

    Attributes:
        place: which.
        base: what was in it, the very storage (of a weight spread over processes, a copy of this one's part).
        base_mark: the parameter's fingerprint when the base was in it.
        operations: the merged operations on it, in stack order; none when it is only watched (attached branches).
        weight: what is in it instead of the base, if anything.
        total: the running sum of the deltas, once there are two.
        before: the state that a provisional change was made on, to go back to without computing.
        mark: the parameter's fingerprint as the stack left it.
    """

    place: Place
    base: Held
    base_mark: Fingerprint
    operations: tuple[WeightOperation, ...]
    weight: Tensor | None
    total: Tensor | None
    before: Slot | None
    mark: Fingerprint

    def live(self) -> Tensor:
        """What belongs in the parameter (this process's part of it); of an offloaded base, read if it must be."""
        return self.place.storage.read(self.base) if self.weight is None else self.weight

    @property
    def deltas(self) -> int:
        """How many deltas ``total`` sums."""
        return sum(not isinstance(operation, Replace) for operation in self.operations)


class Slots:
    """All slots of one model."""

    def __init__(self, model: nn.Module, digests: BaseDigests) -> None:
        self._model = model
        self._digests = digests
        self._slots: dict[str, Slot] = {}

    def get(self, name: str) -> Slot | None:
        """The slot of a parameter, if it has one."""
        return self._slots.get(name)

    @property
    def table(self) -> dict[str, Slot]:
        """The present slots, for going back to with :meth:`install`."""
        return self._slots

    # ------------------------------------------------------------------ changing

    def plan(
        self,
        wanted: Mapping[str, tuple[WeightOperation, ...]],
        provisional: bool = False,
        names: Mapping[int, Sequence[str]] | None = None,
    ) -> dict[str, Slot]:
        """The slots that put exactly these operations on the model; computed, not installed.

        ``provisional``: remember what they replace. ``names`` are those :func:`names_by_parameter` gives now. Raises
        InputError for places that cannot be written.
        """
        unknown = [name for name in wanted if name not in self._slots]
        if unknown and names is None:
            names = names_by_parameter(self._model)
        fresh = [find_place(self._model, name, names) for name in unknown]
        for name, other in sharing_memory(self._model, fresh):
            raise InputError(f"{name!r} shares memory with {other!r} without being tied to it; clone one of them first")
        new = {place.name: self._empty(place) for place in fresh}
        return {
            name: self._with(self._slots.get(name) or new[name], operations, provisional)
            for name, operations in wanted.items()
        }

    def _empty(self, place: Place) -> Slot:
        mark = place.storage.mark()
        return Slot(place, place.storage.hold(), mark, (), None, None, None, mark)

    def _with(self, slot: Slot, operations: tuple[WeightOperation, ...], provisional: bool) -> Slot:
        if operations == slot.operations:
            return slot
        earlier = slot.before
        while earlier is not None:
            if earlier.operations == operations:
                return _renewed(slot, operations, earlier.weight, earlier.total, earlier.before)
            earlier = earlier.before
        if not operations:
            return _renewed(slot, (), None, None, None)
        if (fault := slot.place.storage.delta_fault) is not None:
            raise InputError(f"{slot.place.name!r} {fault}")
        appended = slot.operations and operations[: len(slot.operations)] == slot.operations
        weight, total = _formed(slot, operations, slot.total if appended else None, slot.deltas)
        return _renewed(slot, operations, weight, total, slot if provisional else None)

    def install(self, table: dict[str, Slot]) -> None:
        """Put planned slots in place of the present ones; all of it or, when something fails, nothing."""
        before = self._slots
        try:
            self._write(table)
        except BaseException:
            self._slots = table | before
            self._write(before)
            raise

    def _write(self, table: dict[str, Slot]) -> None:
        for name, slot in self._slots.items():
            if name not in table:
                _show_base(slot)
                self._digests.renew(name, slot.base_mark, slot.mark)
        for slot in table.values():
            _show(slot)
        self._slots = table

    # ------------------------------------------------------------------ base and back

    def show_base(self) -> None:
        """Bases back into their parameters, by reference; :meth:`show_edited` undoes it."""
        try:
            for slot in self._slots.values():
                _show_base(slot)
        except BaseException:
            self.show_edited()
            raise

    def show_edited(self) -> None:
        """What the stack made back into the parameters, by reference."""
        for slot in self._slots.values():
            _show(slot)

    # ------------------------------------------------------------------ watching

    def check(self, base_shown: bool = False) -> None:
        """StackDisturbedError when a parameter is not as the stack left it."""
        for slot in self._slots.values():
            fault = self._fault(slot, base_shown)
            if fault is not None:
                raise StackDisturbedError(
                    f"{slot.place.name!r} {fault} by something else than the stack; nothing was changed, so take that "
                    "back or reload the model (to move a patched model, use stack.to)"
                )

    def _fault(self, slot: Slot, base_shown: bool) -> str | None:
        place = slot.place
        try:
            owner = self._model.get_submodule(place.module)
        except AttributeError:
            return "was removed"
        if owner is not place.owner or not place.storage.there:
            return "was exchanged"
        if place.storage.outdated(slot.base, slot.base_mark):
            return "had the file that its base is in written"
        now = place.storage.mark()
        if now == slot.mark:
            return None
        if now.dtype != slot.mark.dtype or now.device != slot.mark.device:
            return "was moved or cast"
        if not now.same_storage(slot.mark):
            if not repacked(place.parameter, slot.mark, now):
                return "was given other storage"
        # only the version moved: somebody swapped storage and put it back, or really wrote
        elif not self._holds_what_it_should(slot, base_shown):
            return "was written to"
        slot.mark = now
        return None

    def _holds_what_it_should(self, slot: Slot, base_shown: bool) -> bool:
        storage, shows_base = slot.place.storage, slot.weight is None or base_shown
        if isinstance(storage, Sharded):
            return _same_bits(storage.local, storage.read(slot.base) if shows_base else slot.live())
        if slot.weight is None or base_shown:
            known = self._digests.known(slot.place.name, slot.base_mark).get(dtype_name(storage.dtype))
            return known is not None and tensor_digest(storage.read(slot.base)) == known
        expected, _ = _formed(slot, slot.operations, None, 0)
        return _same_bits(expected, slot.weight)


def _formed(
    slot: Slot, operations: tuple[WeightOperation, ...], total: Tensor | None, summed: int
) -> tuple[Tensor, Tensor | None]:
    """:func:`form_weight` for a slot: of a weight spread over processes, this one's part."""
    place = slot.place
    cut = Cut(place.shape, place.storage.cut) if isinstance(place.storage, Sharded) else None
    return form_weight(place.storage.read(slot.base), place.layout, operations, total, summed, cut)


def _renewed(
    slot: Slot,
    operations: tuple[WeightOperation, ...],
    weight: Tensor | None,
    total: Tensor | None,
    before: Slot | None,
) -> Slot:
    return Slot(slot.place, slot.base, slot.base_mark, operations, weight, total, before, slot.mark)


def _show(slot: Slot) -> None:
    """What belongs in the parameter into it; the parameter itself, its names, flags and gradient stay."""
    if slot.weight is None:
        _show_base(slot)
        return
    slot.place.storage.put(slot.weight)
    slot.mark = slot.place.storage.mark()


def _show_base(slot: Slot) -> None:
    """The base back into the parameter."""
    slot.place.storage.restore(slot.base)
    slot.mark = slot.place.storage.mark()


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
