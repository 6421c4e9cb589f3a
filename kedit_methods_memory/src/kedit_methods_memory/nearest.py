"""The nearest of many keys, by distances that a radius test may trust.

Expanding a squared distance into products loses what is small beside the vectors' own length: a key may then seem 0.2
away from itself. So products only choose candidates, and candidates are measured by their differences.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import InputError

_CANDIDATES = 8
_ROOM = 1 << 24  # numbers that one chunk of products or differences may hold


@frozen(eq=False)
class Nearest:
    """``index`` ``[queries]`` int64, the first of equally near keys; ``distance`` ``[queries]`` float32, Euclidean."""

    index: Tensor
    distance: Tensor


def nearest(queries: Tensor, keys: Tensor) -> Nearest:
    """The nearest key of each query.

    The result is that of measuring every difference in float32: keys that could be as near as the best one, given the
    rounding of products, are all measured so. Time: one product ``queries x keys``; memory: chunks of 64 MiB.

    Args:
        queries: ``[queries, width]``, any floating dtype.
        keys: ``[keys, width]``, at least one.

    Raises InputError when there is no key, or the widths differ.
    """
    if keys.dim() != 2 or queries.dim() != 2 or keys.shape[0] == 0 or keys.shape[1] != queries.shape[1]:
        raise InputError(
            f"queries {list(queries.shape)} cannot be held against keys {list(keys.shape)}; both are [n, width], and "
            "one key at least is needed"
        )
    queries, keys = queries.float(), keys.float()
    if keys.shape[0] <= 4 * _CANDIDATES:
        return _measured(queries, keys)
    lengths = keys.square().sum(dim=1)
    found = [_chunk(part, keys, lengths) for part in torch.split(queries, max(1, _ROOM // keys.shape[0]))]
    return Nearest(torch.cat([each.index for each in found]), torch.cat([each.distance for each in found]))


def _chunk(queries: Tensor, keys: Tensor, lengths: Tensor) -> Nearest:
    own = queries.square().sum(dim=1, keepdim=True)
    rough, index = (own + lengths - 2 * (queries @ keys.T)).topk(_CANDIDATES + 1, dim=1, largest=False)
    # what products and sums of this width may be wrong by, with much to spare
    slack = (own + lengths.max()) * (torch.finfo(torch.float32).eps * (keys.shape[1] ** 0.5 + 8) * 4)
    unsure = rough[:, -1] <= rough[:, 0] + 2 * slack[:, 0]
    index = index[:, :-1].sort(dim=1).values  # so that the first of equally near ones is taken
    distance = (queries.unsqueeze(1) - keys[index]).square().sum(dim=2).sqrt()
    best = distance.argmin(dim=1, keepdim=True)
    chosen, near = index.gather(1, best)[:, 0], distance.gather(1, best)[:, 0]
    if bool(unsure.any()):
        exact = _measured(queries[unsure], keys)
        chosen[unsure], near[unsure] = exact.index, exact.distance
    return Nearest(chosen, near)


def _measured(queries: Tensor, keys: Tensor) -> Nearest:
    """By every difference, one query after another."""
    index = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    distance = torch.zeros(len(queries), device=queries.device)
    for row, query in enumerate(queries):
        distances = (query - keys).square().sum(dim=1).sqrt()
        index[row] = distances.argmin()
        distance[row] = distances[index[row]]
    return Nearest(index, distance)
