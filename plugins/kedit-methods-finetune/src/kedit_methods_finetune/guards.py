"""What should be said of an edit that was made, but is doubtful: each with its number and the remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.models.storage import storage_of
from kedit_core.patches import DenseDelta, LowRankDelta

_LARGE = 1.0  # of the weight's own size


def warn_large(context: EditContext, deltas: Sequence[DenseDelta | LowRankDelta], remedy: str) -> None:
    """Warn ``large_update`` when what is added to a weight is larger than the weight (Frobenius norms); once, of the
    largest.

    Vectors are not looked at, since a sound model may have a bias of zero, nor weights that are quantised or not in
    memory.
    """
    weights = dict(context.model.named_parameters(remove_duplicate=False))
    found: dict[str, float] = {}
    for delta in deltas:
        weight = weights[delta.place].detach()
        if weight.dim() < 2 or weight.is_meta or storage_of(context.model, delta.place).kind != "plain":
            continue
        size = _norm(weight)
        if size > 0:
            found[delta.place] = _norm_of(delta) / size
    large = {place: relative for place, relative in found.items() if relative > _LARGE}
    if large:
        place = max(large, key=large.__getitem__)
        more = f" ({len(large)} of {len(found)} updates are larger than their weights)" if len(found) > 1 else ""
        context.warn(
            "large_update",
            large[place],
            remedy,
            f"the update of {place} is {large[place]:.2g} times the size of its weight{more}, so much else that the "
            "model knows may be lost",
        )


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.promote_types(values.dtype, torch.float32)))


def _norm_of(delta: DenseDelta | LowRankDelta) -> float:
    if isinstance(delta, DenseDelta):
        return _norm(delta.values)
    # |LR|^2 = tr(L^T L R R^T), so that the product is never formed
    left, right = delta.left.double(), delta.right.double()
    return math.sqrt(max(0.0, float(((left.T @ left) * (right @ right.T)).sum())))
