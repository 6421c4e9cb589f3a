"""Finding out where a parameter's value lives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kedit_core.errors import InputError
from kedit_core.models.storage.base import Packed, Plain, Storage, is_packed
from kedit_core.models.storage.names import last_entry, split_tie
from kedit_core.models.storage.offloaded import Offloaded, offload_of
from kedit_core.models.storage.sharded import Sharded, is_gathered, is_spread, local_part


def storage_of(model: nn.Module, name: str, aliases: Sequence[str] = ()) -> Storage:
    """Where the value of the parameter ``name`` lives; ``aliases`` are its other names.

    Raises InputError for a weight that no value can be put into or read from: one on the ``meta`` device that nothing
    fills, one that is packed and offloaded (or spread) as well, or one torn from what it is tied to.
    """
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    parameter = owner._parameters[leaf]
    if parameter is None:
        raise InputError(f"{name!r} is empty in this model; there is nothing to change")
    if is_spread(parameter):
        local = local_part(parameter)
        if local.is_meta or is_packed(local):
            raise InputError(f"{name!r} is spread over several processes and not of plain numbers; gather it first")
        return Sharded(owner, leaf, is_gathered(model, path))
    if parameter.is_meta:
        return _offloaded(model, name, aliases, owner, leaf)
    if is_packed(parameter):
        return Packed(owner, leaf)
    _check_ties(model, name, aliases)
    return Plain(owner, leaf)


def _offloaded(model: nn.Module, name: str, aliases: Sequence[str], owner: nn.Module, leaf: str) -> Storage:
    offload = offload_of(model, name.rpartition(".")[0])
    if offload is None:
        raise InputError(f"{name!r} is on the meta device and nothing fills it, so a change would be lost; load it")
    if is_packed(owner._parameters[leaf]):  # type: ignore[arg-type]
        raise InputError(f"{name!r} is quantised and offloaded as well; load it in memory, or unquantised")
    _check_ties(model, name, aliases)
    twins = [entry for alias in aliases if (entry := last_entry(model, alias)) is not None]
    storage = Offloaded(owner, leaf, offload, tuple(twins))
    mine = offload.entries(leaf)[-1]
    for alias, twin in zip(aliases, twins, strict=False):
        if twin.same_as != mine.same_as and not torch.equal(twin.from_file(), mine.from_file()):
            raise InputError(
                f"{name!r} is tied to {alias!r} by the model's configuration, and their offloaded values differ; load "
                "the model untied (tie_word_embeddings=False)"
            )
    return storage


def _check_ties(model: nn.Module, name: str, aliases: Sequence[str]) -> None:
    if (other := split_tie(model, (name, *aliases))) is not None:
        raise InputError(
            f"{name!r} is tied to {other!r}, and only one of them is offloaded, so a change would reach one alone; put "
            "both on one device"
        )
