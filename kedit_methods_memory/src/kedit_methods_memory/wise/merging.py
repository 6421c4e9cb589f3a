"""Shards made one: several differences from a matrix merged (TIES, DARE, and plainer ways).

TIES: Yadav et al. 2023 (arXiv 2306.01708); DARE: Yu et al. 2024 (arXiv 2311.03099).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_methods_memory.hparams.wise import MergeAlgorithm, WiseHyperParams

_COLLINEAR = 0.9995


@frozen
class MergeRule:
    """How shards are merged; see :class:`WiseHyperParams` for the algorithms.

    Attributes:
        density: share of entries that are kept of each shard.
        weights: what new shards' weights add up to.
    """

    algorithm: MergeAlgorithm
    density: float
    weights: float

    @classmethod
    def of(cls, hparams: WiseHyperParams) -> MergeRule:
        """That of the settings."""
        return cls(hparams.merge_alg, hparams.density, hparams.weights)


def merged(deltas: Sequence[Tensor], weights: Sequence[float], rule: MergeRule, generator: torch.Generator) -> Tensor:
    """The merged difference of ``deltas``, all of one shape and dtype.

    Args:
        weights: how much each counts.
        rule: how; its own weights are not looked at.
        generator: for ``dare_ties``, on the CPU.
    """
    algorithm, density = rule.algorithm, rule.density
    if algorithm == "slerp":
        return _slerp_all(deltas, weights)
    if algorithm in ("ties", "magnitude"):
        deltas = [largest(delta, density) for delta in deltas]
    elif algorithm == "dare_ties":
        deltas = [thinned(delta, density, generator) for delta in deltas]
    if algorithm in ("linear", "magnitude"):
        return torch.stack([weight * delta for weight, delta in zip(weights, deltas, strict=True)]).sum(dim=0)
    return elected(deltas, weights, normalise=algorithm != "dare_ties")


def largest(delta: Tensor, density: float) -> Tensor:
    """The largest entries by magnitude, ``int(density * entries)`` of them; of equal ones the first. Others are 0."""
    keep = int(density * delta.numel())
    sizes = delta.abs().reshape(-1)
    if int((sizes > 0).sum()) <= keep:
        return delta
    if keep == 0:
        return torch.zeros_like(delta)
    least = sizes.kthvalue(sizes.numel() - keep + 1).values
    kept = sizes > least
    tied = (sizes == least).nonzero()[:, 0]
    kept[tied[: keep - int(kept.sum())]] = True
    return delta * kept.view_as(delta)


def thinned(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each entry with probability ``density``, then divided by it (DARE)."""
    kept = torch.rand(delta.shape, generator=generator) < density
    return delta * kept.to(delta.device) / density


def elected(deltas: Sequence[Tensor], weights: Sequence[float], normalise: bool) -> Tensor:
    """For each entry the weighted sum of those that have the sign of the weighted sum of all (0 counts as positive).

    ``normalise``: divided by the weights of those that were summed.
    """
    total = torch.stack([weight * delta for weight, delta in zip(weights, deltas, strict=True)]).sum(dim=0)
    sign = torch.where(total >= 0, 1.0, -1.0).to(total.dtype)
    kept, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for weight, delta in zip(weights, deltas, strict=True):
        agrees = (weight * delta).sign() == sign
        kept += weight * delta * agrees
        divisor += weight * agrees
    return kept / divisor.masked_fill(divisor == 0, 1.0) if normalise else kept


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The point ``share`` of the way from one to the other on the sphere; on the line where they are nearly collinear
    or one is 0."""
    one, other = (torch.linalg.vector_norm(each) for each in (first, second))
    cosine = (first * second).sum() / (one * other) if one > 0 and other > 0 else torch.ones((), dtype=first.dtype)
    if bool(cosine.abs() > _COLLINEAR):
        return (1 - share) * first + share * second
    angle = torch.arccos(cosine)
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)


def _slerp_all(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """One after the other, each by its share of the weight so far."""
    found, weight = deltas[0], weights[0]
    for delta, more in zip(deltas[1:], weights[1:], strict=True):
        weight += more
        found = slerp(found, delta, more / weight)
    return found
