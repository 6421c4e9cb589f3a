"""Several patches as one: the rounds of one edit handed on as one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.patches.manifest import Base, BaseTensor, PrivateRequests, Requirement, State

if TYPE_CHECKING:
    from kedit_core.patches.format import EditPatch

JOINED = "joined"


def join(patches: Sequence[EditPatch]) -> EditPatch:
    """One patch that does what ``patches`` do one after the other.

    Operations are kept separate and in order, so a model gets the same bits either way. Parents among ``patches``
    disappear. States are kept side by side (see :func:`split_state`). Raises InputError when the patches are not of
    one method with the same settings, or do not agree about the base.
    """
    from kedit_core.patches.format import EditPatch

    if not patches:
        raise InputError("there is nothing to join; give at least one patch")
    if len(patches) == 1:
        return patches[0]
    first = patches[0]
    for patch in patches[1:]:
        for name in ("method", "hparams", "seed"):
            if getattr(patch, name) != getattr(first, name):
                raise InputError(f"patches with a different {name} cannot be joined; apply them one after the other")
    ids = [patch.id for patch in patches]
    if len(set(ids)) != len(ids):
        raise InputError("a patch cannot be joined with itself; give each patch once")
    parents = dict.fromkeys(parent for patch in patches for parent in patch.parents if parent not in ids)
    return EditPatch(
        method=first.method,
        hparams=first.hparams,
        seed=first.seed,
        parents=tuple(parents),
        requires=_requirements(patches),
        base=_base(patches),
        operations=tuple(operation for patch in patches for operation in patch.operations),
        state=_state(patches),
        requests=_requests(patches),
    )


def _base(patches: Sequence[EditPatch]) -> Base:
    first = patches[0].base
    tensors: dict[str, BaseTensor] = {}
    for base in (patch.base for patch in patches):
        for name in ("name", "revision", "architecture", "config_sha256"):
            if getattr(base, name) != getattr(first, name):
                raise InputError(f"the patches are for bases of a different {name}, so they cannot be joined")
        for place, tensor in base.tensors.items():
            if tensors.setdefault(place, tensor) != tensor:
                raise InputError(f"the patches were made for different values of {place!r}, so they cannot be joined")
    return Base(
        name=first.name,
        revision=first.revision,
        architecture=first.architecture,
        config_sha256=first.config_sha256,
        tensors=tensors,
    )


def _requirements(patches: Sequence[EditPatch]) -> tuple[Requirement, ...]:
    needs: dict[str, Requirement] = {}
    for need in (need for patch in patches for need in patch.requires):
        if needs.setdefault(need.role, need) != need:
            raise InputError(f"the patches need different things as {need.role!r}, so they cannot be joined")
    return tuple(needs.values())


def _requests(patches: Sequence[EditPatch]) -> tuple[Mapping[str, Any], ...] | PrivateRequests:
    facts: list[Mapping[str, Any]] = []
    for patch in patches:
        if isinstance(patch.requests, PrivateRequests):
            raise InputError("patches whose requests are private cannot be joined; join first, then make them private")
        facts += patch.requests
    return tuple(facts)


def _state(patches: Sequence[EditPatch]) -> State:
    parts = [part for patch in patches for part in split_state(patch)]
    if not any(parts):
        return State()
    tensors: dict[str, Tensor] = {}
    for i, part in enumerate(parts):
        tensors |= {f"{i}.{name}": tensor for name, tensor in part.tensors.items()}
    return State({JOINED: [dict(part.config) for part in parts]}, tensors)


def split_state(patch: EditPatch) -> tuple[State, ...]:
    """The states of the patches that ``patch`` was joined from, in order; its own state alone when it was not."""
    configs = patch.state.config.get(JOINED)
    if set(patch.state.config) != {JOINED} or not isinstance(configs, list):
        return (patch.state,)
    tensors: list[dict[str, Tensor]] = [{} for _ in configs]
    numbers = {str(i): i for i in range(len(configs))}
    for name, tensor in patch.state.tensors.items():
        number, _, key = name.partition(".")
        if number in numbers:
            tensors[numbers[number]][key] = tensor
    return tuple(State(config, held) for config, held in zip(configs, tensors, strict=True))
