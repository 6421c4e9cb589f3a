"""The base beneath a stack, read: its tensors, what marks them, its digests, and its description for a patch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kedit_core.models.storage import Held, mark_of, reshard, value_of
from kedit_core.models.wrappers import architecture_of
from kedit_core.patches import baseline
from kedit_core.patches.digests import base_dtypes, config_digest, dtype_name, tensor_digest
from kedit_core.patches.format import Base
from kedit_core.patches.operations import Operation
from kedit_core.patches.places import Fingerprint, Place, find_place, names_by_parameter, parameters_of
from kedit_core.patches.ranks import Ranks
from kedit_core.patches.slots import Slots


class Beneath:
    """Reads the base of one model, whatever the stack has put in its place.

    Args:
        model: the live model.
        slots: what the stack has written.
        digests: those computed already.
    """

    def __init__(self, model: nn.Module, slots: Slots, digests: baseline.BaseDigests) -> None:
        self._model, self._slots, self._digests = model, slots, digests

    def tensor(self, place: Place) -> Tensor:
        """The base of a parameter, as stored."""
        return place.storage.whole(self._held(place)[0]).detach()

    def sha256(self, place: Place, ranks: Ranks) -> str:
        """A digest of the base of any parameter: as float32, or of the tensors that a packed one is made of."""
        if not place.packed:
            return self.digest(place, torch.float32, ranks)
        parts = [tensor_digest(part) for part in value_of(self._model, place.name, place.parameter)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def marks(self) -> tuple[Fingerprint, ...]:
        """One for each parameter and buffer; see :meth:`PatchStack.base_mark`."""
        reshard(self._model)
        tensors = [*self._model.named_parameters(), *self._model.named_buffers()]
        slots = [(self._slots.get(name), name, tensor) for name, tensor in tensors]
        return tuple(
            mark_of(self._model, name, tensor) if slot is None else slot.base_mark for slot, name, tensor in slots
        )

    def digest(self, place: Place, dtype: torch.dtype, ranks: Ranks) -> str:
        """The digest of a parameter's base in one dtype."""
        return self._digests_of(place, (dtype,), ranks)[dtype_name(dtype)]

    def described(
        self, places: Sequence[Operation | str], name: str | None, revision: str | None, ranks: Ranks
    ) -> Base:
        """What a patch records of the base; see :meth:`PatchStack.base_of`."""
        tensors, names = {}, names_by_parameter(self._model)
        wanted = parameters_of(self._model, places)
        with ranks.agree(f"describe the base at {', '.join(wanted)}"):
            found = [find_place(self._model, each, names) for each in wanted]
        for place in found:
            digests = {} if place.packed else self._digests_of(place, base_dtypes(place.dtype), ranks)
            tensors[place.name] = baseline.describe_tensor(place, digests)
        config = getattr(self._model, "config", None)
        return Base(
            name=name,
            revision=revision,
            architecture=architecture_of(self._model),
            config_sha256=None if config is None else config_digest(config),
            tensors=tensors,
        )

    def _digests_of(self, place: Place, dtypes: Sequence[torch.dtype], ranks: Ranks) -> dict[str, str]:
        held, mark = self._held(place)
        return self._digests.of(place.name, partial(place.storage.whole, held), mark, dtypes, ranks.any)

    def _held(self, place: Place) -> tuple[Held, Fingerprint]:
        if (slot := self._slots.get(place.name)) is not None:
            return slot.base, slot.base_mark
        return place.storage.hold(), place.storage.mark()
