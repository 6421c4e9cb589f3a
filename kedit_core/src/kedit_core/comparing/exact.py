"""The operation that makes one weight another, bit for bit: the smallest that does.

A delta is ``edited - base``, formed in float32 (float64 for float64 weights). Added to the base it gives the edited
weight again in most cases, but not in all: a number near zero that came from a large one is lost, and adding any delta
turns a negative zero into zero. So every candidate is put on by the function that forms weights, and compared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kedit_core.models.adapter import Layout
from kedit_core.patches.operations import (
    Axis,
    Delta,
    DenseDelta,
    Owned,
    Replace,
    SparseDelta,
    WeightOperation,
)
from kedit_core.patches.weights import exact_dtype, exact_maths, form_weight

_INDEX_BYTES = 8
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def exact_operation(
    place: str, base: Tensor, edited: Tensor, layout: Layout, loaded: torch.dtype | None = None
) -> WeightOperation:
    """The operation at ``place`` after which ``base`` is ``edited``, bit for bit.

    Args:
        base, edited: as stored; finite or not, of one shape and dtype.
        layout: how they are stored.
        loaded: a dtype that both are cast to when the model is loaded; it must be so there as well.

    Returns:
        Rows, columns or elements alone where that is smaller than the whole delta; values in the weights' own dtype
        where they are exact in it, else in float32; ``replace`` where no delta is exact. It may hold ``edited`` itself.
    """
    delta = delta_of(base, edited, layout)
    mask = _out_in(bits(base) != bits(edited), layout)
    for dtype in dict.fromkeys((base.dtype, delta.dtype)):
        values = delta.to(dtype)
        if not finite(values):
            continue
        operation = _smallest(place, values, mask)
        if gives(base, edited, layout, operation, loaded):
            return operation
    return Replace(place, _owned(edited))


def delta_of(base: Tensor, edited: Tensor, layout: Layout) -> Tensor:
    """``edited - base`` in [out, in] terms, in the dtype deltas are formed in."""
    dtype = exact_dtype(base.dtype)
    with exact_maths(base.device):
        delta = edited.to(dtype, copy=True).sub_(base)
    return _out_in(delta, layout)


def gives(
    base: Tensor, edited: Tensor, layout: Layout, operation: WeightOperation, loaded: torch.dtype | None = None
) -> bool:
    """Whether the base with the operation on it is ``edited`` bit for bit, as stored and as loaded."""
    return all(
        same_bits(formed(base.to(dtype), layout, operation), edited.to(dtype))
        for dtype in dict.fromkeys((base.dtype, loaded or base.dtype))
    )


def formed(base: Tensor, layout: Layout, operation: WeightOperation) -> Tensor:
    """The base with one operation on it, as the stack forms it."""
    return form_weight(base, layout, [operation])[0]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, zeros of different signs told apart."""
    return torch.equal(bits(one), bits(other))


def finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; without a copy of it."""
    return not tensor.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def peak(tensor: Tensor) -> float:
    """The largest absolute value of a floating-point tensor; NaN where there is one, 0 for none."""
    return max(abs(float(value)) for value in torch.aminmax(tensor)) if tensor.numel() else 0.0


def frobenius(tensor: Tensor) -> float:
    """Frobenius norm of a float32 or float64 tensor, by shares of its largest value: squares of large and of small
    numbers leave float32's range long before the numbers do. Memory: a copy."""
    largest = peak(tensor)
    return largest * float((tensor / largest).norm()) if 0 < largest < math.inf else largest


def bits(tensor: Tensor) -> Tensor:
    """A floating-point tensor's bits as integers of the same size, without a copy where it is contiguous."""
    return tensor.contiguous().view(_BITS[tensor.element_size()])


def size_of(operation: WeightOperation) -> int:
    """Bytes of an operation's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in operation.tensors.values())


def _smallest(place: str, values: Tensor, mask: Tensor) -> Delta:
    """``values`` ([out, in], zero where ``mask`` is not set) in as few bytes as can be."""
    item, shape = values.element_size(), values.shape
    whole = values.numel() * item
    costs: list[tuple[int, Axis]] = []
    lines: dict[Axis, Tensor] = {}
    if values.dim() >= 2:
        lines["row"] = mask.flatten(1).any(1)
    if values.dim() == 2:
        lines["column"] = mask.any(0)
    for axis, touched in lines.items():
        size = values.numel() // max(1, shape[0 if axis == "row" else 1])
        costs.append((int(touched.sum()) * (_INDEX_BYTES + size * item), axis))
    if values.dim():
        costs.append((int(mask.sum()) * (_INDEX_BYTES + item), "element"))
    cost, axis = min(costs, key=lambda each: each[0], default=(whole, "element"))
    if cost >= whole:
        return DenseDelta(place, _owned(values))
    if axis == "element":
        indices = mask.reshape(-1).nonzero().reshape(-1)
        return SparseDelta(place, axis, _owned(indices), _owned(values.reshape(-1)[indices]))
    indices = lines[axis].nonzero().reshape(-1)
    return SparseDelta(place, axis, _owned(indices), _owned(values.index_select(0 if axis == "row" else 1, indices)))


def _out_in(tensor: Tensor, layout: Layout) -> Tensor:
    return tensor.T if layout == "in_out" else tensor


def _owned(tensor: Tensor) -> Owned:
    """For operations to take without a copy."""
    return Owned(tensor.contiguous())
