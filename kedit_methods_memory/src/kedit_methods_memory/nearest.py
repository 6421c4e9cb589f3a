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


def squares(keys: Tensor) -> Tensor:
    """Squared lengths ``[keys]`` float32 of keys ``[keys, width]``: for keys that are asked often."""
    return keys.float().square().sum(dim=1)


def nearest(queries: Tensor, keys: Tensor, lengths: Tensor | None = None) -> Nearest:
    """The nearest key of each query.

    The result is that of measuring every difference in float32: keys that could be as near as the best one, given the
    rounding of products, are all measured so. Time: one product ``queries x keys``; memory: chunks of 64 MiB.

    Args:
        queries: ``[queries, width]``, any floating dtype.
        keys: ``[keys, width]``, at least one.
        lengths: :func:`squares` of the keys, where they are known.

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
    lengths = squares(keys) if lengths is None else lengths
    found = [_chunk(part, keys, lengths) for part in torch.split(queries, max(1, _ROOM // keys.shape[0]))]
    return Nearest(torch.cat([each.index for each in found]), torch.cat([each.distance for each in found]))


def nearest_among(queries: Tensor, keys: Tensor, among: Tensor) -> Nearest:
    """The nearest of each query's own candidates, measured by differences.

    Args:
        queries: ``[queries, width]``, any floating dtype.
        keys: ``[keys, width]``.
        among: ``[queries, candidates]`` int64 indices of keys; -1 is no candidate.

    ``index`` is that of a key, or -1 with an infinite distance where there is no candidate. Memory: chunks of 64 MiB.
    """
    queries, keys = queries.float(), keys.float()
    size = max(1, _ROOM // max(1, among.shape[1] * keys.shape[1]))
    chosen, near = [], []
    for part, own in zip(torch.split(queries, size), torch.split(among, size), strict=True):
        distance = (part.unsqueeze(1) - keys[own.clamp(min=0)]).square().sum(dim=2).sqrt()
        distance = distance.masked_fill(own < 0, torch.inf)
        best = distance.argmin(dim=1, keepdim=True)
        chosen.append(own.gather(1, best)[:, 0])
        near.append(distance.gather(1, best)[:, 0])
    return Nearest(torch.cat(chosen), torch.cat(near))


def _chunk(queries: Tensor, keys: Tensor, lengths: Tensor) -> Nearest:
    own = queries.square().sum(dim=1, keepdim=True)
    rough, index = (own + lengths - 2 * (queries @ keys.T)).topk(_CANDIDATES + 1, dim=1, largest=False)
    # what products and sums of this width may be wrong by, with much to spare
    slack = (own + lengths.max()) * (_product_error(queries) * (keys.shape[1] ** 0.5 + 8) * 4)
    unsure = rough[:, -1] <= rough[:, 0] + 2 * slack[:, 0]
    index = index[:, :-1].sort(dim=1).values  # so that the first of equally near ones is taken
    distance = (queries.unsqueeze(1) - keys[index]).square().sum(dim=2).sqrt()
    best = distance.argmin(dim=1, keepdim=True)
    chosen, near = index.gather(1, best)[:, 0], distance.gather(1, best)[:, 0]
    if bool(unsure.any()):
        exact = _measured(queries[unsure], keys)
        chosen[unsure], near[unsure] = exact.index, exact.distance
    return Nearest(chosen, near)


def _product_error(values: Tensor) -> float:
    """Relative rounding of one product in a matrix product here: TensorFloat-32 keeps ten bits, where it is allowed."""
    coarse = torch.get_float32_matmul_precision() != "highest" and values.device.type != "cpu"
    return 2.0**-10 if coarse else torch.finfo(torch.float32).eps


def _measured(queries: Tensor, keys: Tensor) -> Nearest:
    """By every difference, a chunk of queries and keys at a time."""
    index = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    distance = torch.full((len(queries),), torch.inf, device=queries.device)
    width = max(1, keys.shape[1])
    block = max(1, min(len(keys), _ROOM // width))
    at_once = max(1, _ROOM // (block * width))
    for start in range(0, len(queries), at_once):
        rows = slice(start, start + at_once)
        for first in range(0, len(keys), block):
            differences = queries[rows].unsqueeze(1) - keys[first : first + block]
            distances = differences.square_().sum(dim=2).sqrt_()
            found = distances.argmin(dim=1, keepdim=True)
            near = distances.gather(1, found)[:, 0]
            closer = near < distance[rows]
            index[rows] = torch.where(closer, found[:, 0] + first, index[rows])
            distance[rows] = torch.where(closer, near, distance[rows])
    return Nearest(index, distance)
