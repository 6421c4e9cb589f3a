"""How large an update is: against the weight it is added to, whichever method made it."""

from __future__ import annotations

import torch

from kedit_core.editing import EditContext


def relative_weight_norm(context: EditContext, place: str, norm: float) -> float | None:
    """``norm``, an update's Frobenius norm, as a share of the unedited weight's at ``place``.

    None where the weight is stored packed, so that its numbers are not at hand.
    """
    if context.stack.place(place).packed:
        return None
    base = context.stack.base(place)
    size = float(torch.linalg.vector_norm(base, dtype=torch.promote_types(base.dtype, torch.float32)))
    return norm / max(size, torch.finfo(torch.float32).tiny)  # a weight may be zero, in an added block
