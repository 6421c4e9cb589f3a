"""The parameters that the stack has written: their bases, kept by reference, and what is in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import define
from torch import Tensor, nn

from kedit_core.errors import InputError, StackDisturbedError
from kedit_core.patches.baseline import BaseDigests
from kedit_core.patches.digests import dtype_name, tensor_digest
from kedit_core.patches.operations import Replace, WeightOperation
from kedit_core.patches.places import Fingerprint, Place, find_place, names_by_parameter, sharing_memory
from kedit_core.patches.weights import form_weight


@define(eq=False)
class Slot:
    """One parameter under the stack.

    Attributes:
        place: which.
        base: what was in it, the very storage.
        base_mark: the parameter's fingerprint when the base was in it.
        operations: the merged operations on it, in stack order; none when it is only watched (attached branches).
        weight: what is in it instead of the base, if anything.
        total: the running sum of the deltas, once there are two.
        before: the state that a provisional change was made on, to go back to without computing.
        mark: the parameter's fingerprint as the stack left it.
    """

    place: Place
    base: Tensor
    base_mark: Fingerprint
    operations: tuple[WeightOperation, ...]
    weight: Tensor | None
    total: Tensor | None
    before: Slot | None
    mark: Fingerprint

    @property
    def live(self) -> Tensor:
        """What belongs in the parameter."""
        return self.base if self.weight is None else self.weight

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
        mark = Fingerprint.of(place.parameter)
        return Slot(place, place.parameter.data, mark, (), None, None, None, mark)

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
        if slot.place.packed:
            raise InputError(f"{slot.place.name!r} is quantised, so a delta cannot be merged into it; attach it")
        appended = slot.operations and operations[: len(slot.operations)] == slot.operations
        total = slot.total if appended else None
        weight, total = form_weight(slot.base, slot.place.layout, operations, total, slot.deltas)
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
                _put(slot, slot.base)
                self._digests.renew(name, slot.base_mark, slot.mark)
        for slot in table.values():
            _put(slot, slot.live)
        self._slots = table

    # ------------------------------------------------------------------ base and back

    def show_base(self) -> None:
        """Bases back into their parameters, by reference; :meth:`show_edited` undoes it."""
        try:
            for slot in self._slots.values():
                _put(slot, slot.base)
        except BaseException:
            self.show_edited()
            raise

    def show_edited(self) -> None:
        """What the stack made back into the parameters, by reference."""
        for slot in self._slots.values():
            _put(slot, slot.live)

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
        leaf = place.name.rpartition(".")[2]
        try:
            owner = self._model.get_submodule(place.module)
        except AttributeError:
            return "was removed"
        if owner._parameters.get(leaf) is not place.parameter:
            return "was exchanged"
        now = Fingerprint.of(place.parameter)
        if now == slot.mark:
            return None
        if now.dtype != slot.mark.dtype or now.device != slot.mark.device:
            return "was moved or cast"
        if not now.same_storage(slot.mark):
            return "was given other storage"
        # only the version moved: somebody swapped storage and put it back, or really wrote
        if not self._holds_what_it_should(slot, base_shown):
            return "was written to"
        slot.mark = now
        return None

    def _holds_what_it_should(self, slot: Slot, base_shown: bool) -> bool:
        if slot.weight is None or base_shown:
            dtype = slot.base.dtype
            known = self._digests.known(slot.place.name, slot.base_mark).get(dtype_name(dtype))
            return known is not None and tensor_digest(slot.base) == known
        expected, _ = form_weight(slot.base, slot.place.layout, slot.operations)
        return _same_bits(expected, slot.weight)


def _renewed(
    slot: Slot,
    operations: tuple[WeightOperation, ...],
    weight: Tensor | None,
    total: Tensor | None,
    before: Slot | None,
) -> Slot:
    return Slot(slot.place, slot.base, slot.base_mark, operations, weight, total, before, slot.mark)


def _put(slot: Slot, tensor: Tensor) -> None:
    """Give the parameter this storage; the parameter itself, its names, flags and gradient stay."""
    parameter = slot.place.parameter
    if not slot.place.packed and parameter.data_ptr() != tensor.data_ptr():
        parameter.data = tensor
    slot.mark = Fingerprint.of(parameter)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
