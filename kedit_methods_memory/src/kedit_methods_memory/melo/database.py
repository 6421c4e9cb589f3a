"""MELO's vector database: clusters of prompts with the same answer, and which block each of their points stands for.

Yu et al. 2024 (arXiv 2312.11795), section 3.3; specification: MELO, "Scope layer and vector database". Structure only,
no adapter and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from attrs import define, frozen
from torch import Tensor

from kedit_methods_memory.nearest import nearest

Case: TypeAlias = Literal["new", "joined", "renewed", "conflict", "overwritten"]
Label: TypeAlias = tuple[int, ...]

NONE = -1  # of a point that stands for no block

_SAME_POINT = 1e-6  # of 1 + the query's length: what rounding makes of no distance
_LEAST = 1e-4  # of a radius
_GAP = 1e-5  # that each of two conflicting balls keeps from the middle


@define(eq=False)
class Cluster:
    """``centre`` ``[d]``, radius, the answer's label, ``points`` ``[m, d]`` and for each its block (:data:`NONE`)."""

    centre: Tensor
    radius: float
    label: Label
    points: Tensor
    blocks: list[int]


@frozen
class Admission:
    """What one edit did to the database.

    Attributes:
        case: ``new`` cluster, ``joined`` one with its answer, ``renewed`` the block of a point that was there already,
            ``conflict`` with another answer, or ``overwritten``.
        cluster: the one that answers for the edit.
        block: the one it was trained in.
        near: the nearest cluster before the batch, -1 when there was none.
        distance: to its centre.
        forgotten: points of earlier edits that this one put out of reach.
    """

    case: Case
    cluster: int
    block: int
    near: int
    distance: float
    forgotten: int = 0


class Database:
    """Clusters, in the order in which they were opened; all tensors float32 on the CPU.

    Args:
        radius: of a new cluster, r0.
        clusters: those there are already.
        slack: share of a point's length by which a cluster that grows goes beyond its outermost point: what the query
            of the same prompt in another batch may be off by.
    """

    def __init__(self, radius: float, clusters: Sequence[Cluster] = (), slack: float = 0.0) -> None:
        self.radius = radius
        self.slack = slack
        self.clusters = list(clusters)

    def admit(self, queries: Tensor, labels: Sequence[Label], block: int) -> tuple[Admission, ...]:
        """Take in a batch of edits that was trained in one block: queries ``[n, d]``.

        Distances are taken before the first of them is in, so edits of a batch do not see each other's clusters.
        """
        queries = queries.detach().to("cpu", torch.float32)
        if not self.clusters:
            return tuple(
                Admission("new", self._open(query, self.radius, label, block), block, -1, 0.0)
                for query, label in zip(queries, labels, strict=True)
            )
        found = nearest(queries, torch.stack([cluster.centre for cluster in self.clusters]))
        return tuple(
            self._admit(query, label, block, int(near), float(distance))
            for query, label, near, distance in zip(queries, labels, found.index, found.distance, strict=True)
        )

    def _admit(self, query: Tensor, label: Label, block: int, near: int, distance: float) -> Admission:
        cluster = self.clusters[near]
        same = label == cluster.label
        if not same and distance <= _SAME_POINT * (1 + float(query.norm())):
            # half of no distance would leave a dead ball: the new answer takes the whole cluster
            gone = sum(each != NONE for each in cluster.blocks)
            cluster.label, cluster.points, cluster.blocks = label, query.unsqueeze(0), [block]
            return Admission("overwritten", near, block, near, distance, gone)
        if distance > cluster.radius + self.radius:
            return Admission("new", self._open(query, self.radius, label, block), block, near, distance)
        if same:
            gaps = _distances(cluster.points, query)
            if float(gaps.min()) <= _SAME_POINT * (1 + float(query.norm())):
                # of two points in one place the first would be asked, and the block trained last never act
                cluster.blocks[int(gaps.argmin())] = block
                return Admission("renewed", near, block, near, distance)
            cluster.points = torch.cat([cluster.points, query.unsqueeze(0)])
            cluster.blocks.append(block)
            cluster.centre = cluster.points.mean(dim=0)
            cluster.radius = max(self.radius, self._reach(cluster))
            return Admission("joined", near, block, near, distance)
        half = max(distance / 2 - _GAP, _LEAST)
        mine = self._open(query, half, label, block)
        return Admission("conflict", mine, block, near, distance, _shrink(cluster, half))

    def _reach(self, cluster: Cluster) -> float:
        """The radius that holds all points of a cluster, whatever batch they are read in."""
        reach = _distances(cluster.points, cluster.centre).max() + self.slack * cluster.points.norm(dim=1).max()
        return float(torch.nextafter(reach, torch.tensor(torch.inf)))

    def _open(self, query: Tensor, radius: float, label: Label, block: int) -> int:
        self.clusters.append(Cluster(query.clone(), _single(radius), label, query.unsqueeze(0).clone(), [block]))
        return len(self.clusters) - 1

    # ------------------------------------------------------------------ as tensors
    def tensors(self) -> dict[str, Tensor]:
        """``centres`` ``[c, d]``, ``radii`` ``[c]``, ``points`` ``[m, d]``, ``point_block`` and ``point_cluster``
        ``[m]`` int64, points in the order of their clusters."""
        return {
            "centres": torch.stack([cluster.centre for cluster in self.clusters]),
            "radii": torch.tensor([cluster.radius for cluster in self.clusters]),
            "points": torch.cat([cluster.points for cluster in self.clusters]),
            "point_block": torch.tensor([block for cluster in self.clusters for block in cluster.blocks]),
            "point_cluster": torch.tensor([i for i, cluster in enumerate(self.clusters) for _ in cluster.blocks]),
        }

    @classmethod
    def of(cls, radius: float, tensors: dict[str, Tensor], labels: Sequence[Label], slack: float = 0.0) -> Database:
        """The database again."""
        clusters = []
        for i, label in enumerate(labels):
            mine = (tensors["point_cluster"] == i).nonzero()[:, 0]
            clusters.append(
                Cluster(
                    tensors["centres"][i].clone(),
                    float(tensors["radii"][i]),
                    label,
                    tensors["points"][mine],
                    tensors["point_block"][mine].tolist(),
                )
            )
        return cls(radius, clusters, slack)


def _shrink(cluster: Cluster, radius: float) -> int:
    """Give a cluster a smaller ball; the points outside are dropped, and how many those were is returned."""
    cluster.radius = _single(radius)
    inside = _distances(cluster.points, cluster.centre) <= cluster.radius
    gone = [block for block, stays in zip(cluster.blocks, inside.tolist(), strict=True) if not stays]
    cluster.points = cluster.points[inside]
    cluster.blocks = [block for block, stays in zip(cluster.blocks, inside.tolist(), strict=True) if stays]
    if not cluster.blocks:
        cluster.points, cluster.blocks = cluster.centre.unsqueeze(0).clone(), [NONE]
    return sum(block != NONE for block in gone)


def _distances(points: Tensor, centre: Tensor) -> Tensor:
    return (points - centre).square().sum(dim=1).sqrt()


def _single(value: float) -> float:
    """Rounded to float32, as it is stored."""
    return float(torch.tensor(value, dtype=torch.float32))
