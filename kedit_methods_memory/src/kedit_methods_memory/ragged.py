"""Tuples of token ids of different lengths, as two tensors of a patch file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from kedit_core.errors import PatchFormatError


def packed(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """``tokens`` ``[sum of lengths]`` and ``offsets`` ``[rows + 1]``, int64; row i is ``offsets[i]:offsets[i + 1]``."""
    lengths = torch.tensor([0, *(len(row) for row in rows)], dtype=torch.int64)
    return torch.tensor([token for row in rows for token in row], dtype=torch.int64), lengths.cumsum(0)


def unpacked(tokens: Tensor, offsets: Tensor) -> list[tuple[int, ...]]:
    """The rows again. Raises PatchFormatError for offsets that do not go up from 0 to the number of tokens."""
    ends = [int(end) for end in offsets.tolist()]
    if not ends or ends[0] != 0 or ends[-1] != tokens.numel() or any(a > b for a, b in pairwise(ends)):
        raise PatchFormatError(
            f"offsets of {tokens.numel()} tokens must go up from 0 to {tokens.numel()}; the patch was not made by kedit"
        )
    flat = tokens.tolist()
    return [tuple(flat[a:b]) for a, b in pairwise(ends)]
