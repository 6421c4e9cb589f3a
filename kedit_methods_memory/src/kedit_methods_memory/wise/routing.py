"""Which memory answers a row: the decision, as numbers.

Specification: WISE, "Inference routing". A memory fires where its routing activation reaches its threshold; one that
moves nothing never does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAIN = -1


def retrieved(activations: Sequence[Tensor], thresholds: Sequence[float], opened: bool) -> Tensor:
    """WISE-Retrieve: ``[rows]`` the memory that answers each row, or -1 for the main one.

    The shard in the making is asked first; each other memory takes the row over where it fires and reacts more strongly
    than any before it (than the shard in the making also where that does not fire).

    Args:
        activations: of each memory ``[rows]``; with ``opened`` the last is the shard in the making.
        thresholds: of each memory.
    """
    choice = torch.full_like(activations[0], MAIN, dtype=torch.long)
    best = torch.zeros_like(activations[0])
    order = list(range(len(activations)))
    first = [order.pop()] if opened else []
    for number in first:
        choice[_fires(activations[number], thresholds[number])] = number
        best = activations[number]
    for number in order:
        here = _fires(activations[number], thresholds[number]) & (activations[number] > best)
        choice[here] = number
        best = torch.where(here, activations[number], best)
    return choice


def strongest(activations: Sequence[Tensor], threshold: float) -> Tensor:
    """WISE-Merge: ``[rows]`` the memory that reacts most (of equal ones the last), or -1 where none fires."""
    choice = torch.full_like(activations[0], MAIN, dtype=torch.long)
    best = torch.zeros_like(activations[0])
    for number, found in enumerate(activations):
        here = _fires(found, threshold) & (found >= best)
        choice[here] = number
        best = torch.maximum(best, found)
    return choice


def _fires(activation: Tensor, threshold: float) -> Tensor:
    return (activation >= threshold) & (activation > 0)
