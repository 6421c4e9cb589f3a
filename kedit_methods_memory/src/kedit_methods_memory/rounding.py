"""How far the same activation may be off from one batch to another."""

from __future__ import annotations

import torch
from torch import nn

_STEPS = 4  # roundings of the model's dtype, of a whole vector


def rounding(model: nn.Module) -> float:
    """As a share of the vector's length, for a model of this dtype (that of its first floating-point parameter)."""
    dtypes = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return _STEPS * torch.finfo(next(dtypes, torch.float32)).eps
