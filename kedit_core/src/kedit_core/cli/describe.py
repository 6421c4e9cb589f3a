"""A patch as JSON for people and programs: its manifest, with each operation's size and norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kedit_core.patches import EditPatch, LowRankDelta, ModuleOperation, Operation, RouterOperation


def description(patch: EditPatch) -> dict[str, Any]:
    """Id and size of a patch, then its manifest; operations also have ``bytes``, and deltas ``shape`` and ``norm``.

    ``norm`` is the Frobenius norm of the whole delta, None where it overflows. Memory: that of the patch.
    """
    manifest = patch.manifest()
    operations = [
        {**written, **_measures(operation)}
        for written, operation in zip(manifest["operations"], patch.operations, strict=True)
    ]
    state = {**manifest["state"], "bytes": _nbytes(patch.state.tensors.values())}
    return {"id": patch.id, "bytes": patch.size, **manifest, "operations": operations, "state": state}


def _measures(operation: Operation) -> dict[str, Any]:
    size = {"bytes": _nbytes(operation.tensors.values())}
    if isinstance(operation, ModuleOperation | RouterOperation):
        return size
    if isinstance(operation, LowRankDelta):
        shape = [operation.left.shape[0], operation.right.shape[1]]
        return {"rank": operation.rank, "shape": shape, "norm": _product_norm(operation.left, operation.right), **size}
    values = operation.tensors["values"]
    return {"shape": list(values.shape), "norm": _finite(values.double().norm()), **size}


def _product_norm(left: Tensor, right: Tensor) -> float | None:
    """Frobenius norm of ``left @ right``: the root of ``sum((L^T L) * (R R^T))``, or of the product if that is less."""
    left, right = left.double(), right.double()
    if left.shape[0] * right.shape[1] < left.shape[1] ** 2:
        return _finite((left @ right).norm())
    return _finite(torch.sqrt(((left.T @ left) * (right @ right.T)).sum().clamp(min=0)))


def _finite(norm: Tensor) -> float | None:
    return float(norm) if torch.isfinite(norm) else None


def _nbytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
