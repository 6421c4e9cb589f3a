"""Rows of a tensor of which most stand in another tensor already: only the others are kept a second time."""

from __future__ import annotations

import torch
from torch import Tensor

from kedit_core.errors import PatchFormatError


def split_off(rows: Tensor, among: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """``extra`` ``[m, width]`` and ``source`` ``[n]`` int64, from which :func:`put_together` makes ``rows`` again.

    Args:
        rows: ``[n, width]``.
        among: ``[k, width]``, which will be there.
        where: ``[n]`` the row of ``among`` that a row may be equal to, bit for bit; -1 for none.
    """
    there = where >= 0
    if len(among):
        there = there & (rows == among[where.clamp(min=0)]).all(dim=1)
    extra = rows[~there]
    source = where.clone()
    source[~there] = len(among) + torch.arange(len(extra))
    return extra, source


def put_together(extra: Tensor, source: Tensor, among: Tensor) -> Tensor:
    """The rows again. Raises PatchFormatError for a source that there is none of."""
    count = len(among) + len(extra)
    if source.dim() != 1 or source.dtype != torch.int64 or bool(((source < 0) | (source >= count)).any()):
        raise PatchFormatError(
            f"rows are taken from {count} rows and some are not there; the patch was not made by kedit"
        )
    return torch.cat([among, extra])[source]
