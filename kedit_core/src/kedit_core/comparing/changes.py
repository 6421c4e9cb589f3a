"""What single patches change at one place: the sum of their operations there, and the base beneath it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from kedit_core.comparing.spectra import EXACT, WeightChange, summed
from kedit_core.errors import BaseMismatchError, InputError
from kedit_core.patches.digests import digests_in, dtype_name
from kedit_core.patches.format import EditPatch
from kedit_core.patches.manifest import BaseTensor
from kedit_core.patches.operations import WEIGHT_OPERATIONS, Replace, WeightOperation, out_in_shape

BaseWeights: TypeAlias = Callable[[str], Tensor]


def shape_of(place: str, patches: Sequence[EditPatch], names: Sequence[str], notes: list[str]) -> tuple[int, ...]:
    """The shape at a place in [out, in] terms; a note when two patches were made for different values there.

    Raises InputError when the patches do not agree about the shape.
    """
    known = [
        (name, patch.base.tensors[place])
        for name, patch in zip(names, patches, strict=True)
        if place in patch.base.tensors
    ]
    (first, described), *others = known
    shape = out_in_shape(described.shape, described.layout)
    for name, other in others:
        if (theirs := out_in_shape(other.shape, other.layout)) != shape:
            raise InputError(
                f"{place!r} is {list(shape)} in the model of {first} and {list(theirs)} in that of {name} ([out, in]); "
                "compare patches for the same model"
            )
        if any(other.sha256.get(dtype, digest) != digest for dtype, digest in described.sha256.items()):
            notes.append(f"{first} and {name} were made for different values of {place}")
    return shape


def base_weight(
    place: str, patches: Sequence[EditPatch], names: Sequence[str], base: BaseWeights, notes: list[str]
) -> Tensor:
    """The base weight as stored; a note for a patch without a digest that it could be held against.

    Raises BaseMismatchError when it is not what one of the patches was made for.
    """
    weight = base(place).detach().cpu()
    for name, patch in zip(names, patches, strict=True):
        if place not in patch.base.tensors:
            continue
        described = patch.base.tensors[place]
        if tuple(weight.shape) != described.shape:
            raise BaseMismatchError(
                f"{place!r} is stored as {list(weight.shape)} in the base given and as {list(described.shape)} in the "
                f"base of {name}; give that one"
            )
        as_float32 = weight.dtype == torch.float64 and "float64" not in described.sha256
        dtype = torch.float32 if as_float32 else weight.dtype
        expected = described.sha256.get(dtype_name(dtype))
        if expected is None:
            notes.append(f"{name} has no digest of {place} as {dtype_name(dtype)}, so the base was not verified there")
        elif digests_in(weight, (dtype,))[dtype_name(dtype)] != expected:
            raise BaseMismatchError(
                f"{place!r} has other values in the base given than in the one that {name} was made for; give that one"
            )
    return weight


def operations_at(patch: EditPatch, place: str) -> list[WeightOperation]:
    """What a patch has for a weight, in order."""
    return [each for each in patch.operations if isinstance(each, WEIGHT_OPERATIONS) and each.place == place]


def change_of(place: str, patch: EditPatch, weight: Tensor | None) -> WeightChange | None:
    """What a patch adds to a weight, or None when it leaves it alone or nobody can tell."""
    operations = operations_at(patch, place)
    replaced = [each for each in operations if isinstance(each, Replace)]
    if not operations or (replaced and weight is None):
        return None
    described = patch.base.tensors[place]
    below = None
    if replaced and weight is not None:
        # the last one counts, cast to the base's dtype (docs/patch-format.md, section 6)
        values = replaced[-1].values.to(weight.dtype)
        below = _out_in(values.to(EXACT) - weight.to(EXACT), described)
    deltas = [each for each in operations if not isinstance(each, Replace)]
    return summed(deltas, out_in_shape(described.shape, described.layout), below)


def _out_in(tensor: Tensor, described: BaseTensor) -> Tensor:
    return tensor.T if described.layout == "in_out" else tensor
