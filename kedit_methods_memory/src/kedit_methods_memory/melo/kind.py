"""MELO's adapters on a live model: module kind ``melo.blocks``.

Yu et al. 2024 (arXiv 2312.11795), sections 3.2 and 3.3; specification: MELO, "Forward of a target" and "Inference".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kedit_core.errors import PatchFormatError, ScopeError
from kedit_core.patches import LiveContext, ModuleOperation
from kedit_core.patches.weights import exact_dtype, exact_maths
from kedit_methods_memory.beneath import Quietable
from kedit_methods_memory.melo.database import NONE
from kedit_methods_memory.nearest import nearest, nearest_among, squares
from kedit_methods_memory.projections import check_widths

_DATABASE = {"centres", "radii", "points", "point_block", "point_cluster"}


class Blocks(Quietable):
    """Adds one block of a low-rank adapter to the outputs of some projections, the same for all tokens of a row.

    Places: the scope projection, whose output at each prompt's last token is looked up, then the projections with
    adapters, which run after it. Tensors: the database (``centres``, ``radii``, ``points``, ``point_block``,
    ``point_cluster``), and for the i-th adapter (from 0) ``a.i`` ``[blocks, in, p]`` and ``b.i`` ``[blocks, p, out]``.
    Config: ``factor``, what a product is multiplied by.

    Rows without a block keep their outputs bit for bit; where no row has one, nothing is computed.

    Memory: the tensors on their places' devices; for the rows of a batch that have a block, ``p (in + out)`` numbers
    each, and a copy of the outputs.
    """

    def __init__(self, operation: ModuleOperation, live: LiveContext) -> None:
        super().__init__(operation, live)
        self._scope, *self._targets = operation.places
        check_blocks(operation)
        tensors, modules = operation.tensors, live.modules
        check_widths("melo.blocks", self._scope, modules[self._scope], out=tensors["centres"].shape[1])
        for i, place in enumerate(self._targets):
            a, b = tensors[f"a.{i}"], tensors[f"b.{i}"]
            check_widths("melo.blocks", place, modules[place], a.shape[1], b.shape[2])
        self._factor = float(operation.config["factor"])
        self.to_device({place: live.device(place) for place in operation.places})

    def to_device(self, devices: Mapping[str, torch.device]) -> None:
        """Keep the database where the scope projection is, and each adapter where its projection is."""
        tensors = self.operation.tensors
        home = devices[self._scope]
        self._centres, self._radii = tensors["centres"].to(home).float(), tensors["radii"].to(home).float()
        self._lengths = squares(self._centres)
        self._points = tensors["points"].to(home).float()
        self._point_block = tensors["point_block"].to(home)
        self._members = _members(tensors["point_cluster"], len(self._centres)).to(home)
        self._adapters = {
            place: tuple(tensors[f"{side}.{i}"].to(devices[place]).float() for side in "ab")
            for i, place in enumerate(self._targets)
        }

    def after(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        """Decide at the scope projection; elsewhere the output with the rows' blocks in it, or None."""
        if self.quiet:
            return None
        scope = self.live.scope
        scope.require()
        if place == self._scope:
            if scope.phase == "prefill":
                with exact_maths(output.device):
                    # on the host, where looking whether any row has a block makes nobody wait
                    scope.put((self, "block"), self._lookup(scope.by_row(output.detach())).cpu())
            return None
        blocks: Tensor | None = scope.get((self, "block"))
        if blocks is None:
            raise ScopeError(
                f"{place} was run before {self._scope} had read the prompts, so their adapters are not known; call the "
                "whole model"
            )
        rows = (blocks != NONE).nonzero()[:, 0]
        if not len(rows):
            return None
        value, whole = scope.by_row(args[0] if args else kwargs["input"]), scope.by_row(output)
        rows, chosen = rows.to(whole.device), blocks[rows].to(whole.device)
        with torch.autocast(whole.device.type, enabled=False):
            a, b = self._adapters[place]
            exact = exact_dtype(whole.dtype)
            added = self._factor * ((value[rows].to(exact) @ a[chosen].to(exact)) @ b[chosen].to(exact))
            changed = (whole[rows].to(exact) + added).to(whole.dtype)
        return whole.index_copy(0, rows, changed).reshape(output.shape)

    def _lookup(self, hidden: Tensor) -> Tensor:
        """``[rows]`` each prompt's block, from the scope projection's output ``[rows, columns, d]``."""
        ends = self.live.scope.prompt_ends.to(hidden.device)
        index = torch.arange(hidden.shape[0], device=hidden.device)
        queries = hidden[index, ends.clamp(min=0)]
        found = nearest(queries, self._centres, self._lengths)
        inside = (found.distance <= self._radii[found.index]) & (ends >= 0)
        point = nearest_among(queries, self._points, self._members[found.index]).index
        return torch.where(inside, self._point_block[point], NONE)


def _members(clusters: Tensor, count: int) -> Tensor:
    """``[clusters, most points of one]`` indices of each cluster's points, filled up with -1."""
    sizes = torch.bincount(clusters, minlength=count)
    order = torch.argsort(clusters, stable=True)
    column = torch.arange(int(sizes.max())).unsqueeze(0)
    at = (sizes.cumsum(0) - sizes).unsqueeze(1) + column
    return torch.where(column < sizes.unsqueeze(1), order[at.clamp(max=len(order) - 1)], -1)


def check_blocks(operation: ModuleOperation) -> None:
    """PatchFormatError unless database and adapters fit together."""
    tensors, count = operation.tensors, len(operation.places) - 1
    shapes = {role: list(tensor.shape) for role, tensor in tensors.items()}
    sides = {f"{side}.{i}" for i in range(count) for side in "ab"}
    fits = count > 0 and set(tensors) == _DATABASE | sides and type(operation.config.get("factor")) in (int, float)
    if fits:
        centres, points, cluster = (tensors[role] for role in ("centres", "points", "point_cluster"))
        block, blocks = tensors["point_block"], len(tensors["a.0"])
        fits = (
            centres.dim() == points.dim() == 2
            and len(centres) > 0
            and centres.shape[1] == points.shape[1]
            and tensors["radii"].shape == (len(centres),)
            and all(tensors[role].is_floating_point() for role in ("centres", "radii", "points", *sides))
            and block.shape == cluster.shape == (len(points),)
            and block.dtype == cluster.dtype == torch.int64
            and set(cluster.tolist()) == set(range(len(centres)))
            and set(block.tolist()) <= set(range(NONE, blocks))
            and all(tensors[role].dim() == 3 and len(tensors[role]) == blocks for role in sides)
            and all(tensors[f"a.{i}"].shape[2] == tensors[f"b.{i}"].shape[1] for i in range(count))
        )
    if not fits:
        raise PatchFormatError(
            f"melo.blocks has a scope place and adapters' places, a factor, a database and blocks a [blocks, in, p], "
            f"b [blocks, p, out] that fit together; here are {count + 1} places and {shapes}"
        )
