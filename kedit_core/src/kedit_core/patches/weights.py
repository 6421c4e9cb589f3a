"""The one function that forms weights.

``weight = cast(base.to(A) + (((0 + d1) + d2) + ...))`` with ``A = promote(float32, dtype)``: each delta formed whole,
sums from the left in stack order, one rounding to the weight's dtype at the end. The same base and operations always
give the same bits (one torch build and kind of device).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.models.adapter import Layout
from kedit_core.patches.operations import Delta, LowRankDelta, Replace, WeightOperation, out_in_shape

_ELEMENTS = 1 << 19


@contextmanager
def exact_maths(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, no inference tensors: what the caller's context would otherwise change."""
    with ExitStack() as settings:
        settings.enter_context(torch.inference_mode(False))
        settings.enter_context(torch.no_grad())
        if device.type != "meta" and torch.amp.is_autocast_available(device.type):
            settings.enter_context(torch.autocast(device.type, enabled=False))
        yield


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype deltas are formed and summed in for weights of ``dtype``."""
    return torch.promote_types(torch.float32, dtype)


@frozen
class Cut:
    """How one process's part is made of a whole value.

    Attributes:
        shape: of the whole weight, as stored.
        part: a whole value -> the part.
    """

    shape: tuple[int, ...]
    part: Callable[[Tensor], Tensor]


def form_weight(
    base: Tensor,
    layout: Layout,
    operations: Sequence[WeightOperation],
    total: Tensor | None = None,
    summed: int = 0,
    cut: Cut | None = None,
) -> tuple[Tensor, Tensor | None]:
    """A new weight from its base and the operations on it, and the sum of their deltas.

    Args:
        base: as stored.
        layout: how it is stored.
        operations: in stack order.
        total: the sum of the first ``summed`` deltas, as this function returned it.
        summed: how many deltas ``total`` holds.
        cut: for a ``base`` that is a part of a weight: deltas are formed whole, so that their bits are the same
            wherever they are formed, and cut.

    Returns:
        The weight, shape and dtype of ``base``; and the sum (None for fewer than two deltas, where nothing is saved by
        keeping it). Memory: the weight, the sum, and one delta at a time (a whole one with ``cut``).
    """
    # a parameter made in inference mode computes with inference tensors only
    with exact_maths(base.device), torch.inference_mode(base.is_inference()), torch.no_grad():
        replaced = [op for op in operations if isinstance(op, Replace)]
        deltas = [op for op in operations if not isinstance(op, Replace)]
        below = base
        if replaced:
            values = replaced[-1].values.to(base.device, base.dtype)
            below = values if cut is None else cut.part(values)
        weight = torch.empty_like(base)
        if not deltas:
            weight.copy_(below)
            return weight, None
        if len(deltas) == 1:
            _write_sum(weight, below, _Rows(deltas[0], weight, layout, cut))
            return weight, None
        if total is None:
            summed = 0
        for delta in deltas[summed:]:
            total = _added(total, _Rows(delta, weight, layout, cut), weight)
        if total is not None:
            _write_sum(weight, below, total)
        return weight, total


class _Rows:
    """Rows of one delta as the weight stores them, formed when asked for (when there is a part to be cut, at once)."""

    def __init__(self, delta: Delta, weight: Tensor, layout: Layout, cut: Cut | None = None) -> None:
        dtype, device = exact_dtype(weight.dtype), weight.device
        shape = tuple(weight.shape) if cut is None else cut.shape
        self.factors: tuple[Tensor, Tensor] | None = None
        self.whole: Tensor | None = None
        self.may_be_zero = True
        if isinstance(delta, LowRankDelta) and delta.rank == 1 and cut is None:
            left, right = delta.left.to(device, dtype), delta.right.to(device, dtype)
            self.factors = (right.T, left.T) if layout == "in_out" else (left, right)
            # rounding is monotone, so no product is smaller than that of the smallest factors
            self.may_be_zero = not bool(left.abs().min() * right.abs().min() > 0) if weight.numel() else False
        else:
            whole = delta.delta(out_in_shape(shape, layout), dtype, device)
            whole = whole.T if layout == "in_out" else whole
            self.whole = whole if cut is None else cut.part(whole.contiguous())

    def into(self, target: Tensor, start: int, end: int) -> None:
        """``0 + d`` for rows ``start:end``, written to ``target``."""
        if self.factors is not None:
            torch.mul(self.factors[0][start:end], self.factors[1], out=target)
        elif self.whole is not None:
            target.copy_(_rows(self.whole, start, end))
        if self.may_be_zero:
            # 0 + d, which turns a negative zero into zero
            target.add_(0.0)


def _rows(tensor: Tensor, start: int, end: int) -> Tensor:
    return tensor[start:end] if tensor.dim() else tensor


def _spans(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Spans of rows small enough to stay in the processor's cache between the steps; all rows at once elsewhere."""
    rows = tensor.shape[0] if tensor.dim() else 1
    if not tensor.numel():
        return
    step = rows
    if tensor.device.type == "cpu":
        step = max(1, _ELEMENTS * torch.get_num_threads() * rows // tensor.numel())
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _write_sum(weight: Tensor, below: Tensor, deltas: _Rows | Tensor) -> None:
    """weight = cast(below.to(A) + deltas), some rows at a time."""
    dtype = exact_dtype(weight.dtype)
    for start, end in _spans(weight):
        rows = _rows(weight, start, end)
        target = rows if dtype == weight.dtype else torch.empty_like(rows, dtype=dtype)
        if isinstance(deltas, Tensor):
            target.copy_(_rows(deltas, start, end))
        else:
            deltas.into(target, start, end)
        target.add_(_rows(below, start, end))
        if target is not rows:
            rows.copy_(target)


def _added(total: Tensor | None, delta: _Rows, weight: Tensor) -> Tensor:
    """total + delta, as a new tensor; a sum is never a negative zero, so ``0 + d`` adds the same bits as ``d``."""
    result = torch.empty_like(weight, dtype=exact_dtype(weight.dtype))
    for start, end in _spans(weight):
        target = _rows(result, start, end)
        delta.into(target, start, end)
        if total is not None:
            target.add_(_rows(total, start, end))
    return result
