"""What shows that a matrix read from a file is no second moment, whatever the file says."""

from __future__ import annotations

import torch
from torch import Tensor

_SLACK = 1e-2  # of an entry's bound: sums of other code were added up in float32
_FLOOR = 1e-9  # of the largest diagonal entry: below it rounding has the say
_ROWS = 2048  # looked at together; a float64 copy of a wide sum would take gigabytes


def fault(total: Tensor) -> str | None:
    """In words that follow "the matrix": why it cannot be ``sum k k^T``; None when nothing shows.

    Entries must be real, and by Cauchy and Schwarz ``|c_ij|^2 <= c_ii c_jj``, which takes no factorisation to see; an
    indefinite matrix may still pass. Values that are not finite are left to :class:`Statistic`.
    """
    if total.ndim != 2 or total.shape[0] != total.shape[1]:
        return f"has the shape {tuple(total.shape)} and is not square"
    if total.is_complex() or total.dtype == torch.bool:
        return f"holds {str(total.dtype).removeprefix('torch.')} and no real numbers"
    diagonal = total.diagonal().to(torch.float64)
    if not len(diagonal):
        return "is empty"
    if bool((diagonal < 0).any()):
        return "has negative values on its diagonal"
    root, floor = diagonal.sqrt(), _FLOOR * float(diagonal.max())
    for start in range(0, len(total), _ROWS):
        stop = start + _ROWS
        rows, columns = total[start:stop].to(torch.float64), total[:, start:stop].to(torch.float64).T
        bound = root[start:stop, None] * root
        if bool(((rows - columns).abs() > _SLACK * bound + floor).any()):
            return "is not symmetric"
        if bool((rows.abs() > (1 + _SLACK) * bound + floor).any()):
            return "is indefinite (entries between two units are larger than the units' own allow)"
    return None
