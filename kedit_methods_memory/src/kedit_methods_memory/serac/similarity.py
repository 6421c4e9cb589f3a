"""How near a prompt is to an edit, in the embedding form (Mitchell et al. 2022, section 3.2).

Distances are taken by explicit differences in float32: expanding them into products may give less than 0, and then a
similarity above 1.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import InputError
from kedit_methods_memory.nearest import nearest

_EPS = torch.finfo(torch.float32).eps


@frozen(kw_only=True)
class Metric:
    """Log-similarity ``-scale * min over heads of distance``, never above 0; settings as in the training's settings."""

    heads: int = 1
    measure: str = "l2"
    square: bool = True
    bounded: bool = False
    scale: float = 1.0

    def split(self, vectors: Tensor) -> Tensor:
        """``[n, width]`` -> ``[n, heads, width / heads]`` float32, bounded or of length 1 where that is asked for.

        Raises InputError when the width is no multiple of the number of heads.
        """
        if vectors.shape[-1] % self.heads:
            raise InputError(f"vectors of {vectors.shape[-1]} numbers cannot be cut into {self.heads} heads")
        parts = vectors.float().reshape(vectors.shape[0], self.heads, -1)
        if self.bounded:
            parts = torch.tanh(parts)
        if self.measure == "cos":
            parts = parts / torch.linalg.vector_norm(parts, dim=-1, keepdim=True).clamp_min(_EPS)
        return parts

    def log_similarities(self, queries: Tensor, keys: Tensor) -> Tensor:
        """``[b, heads, w]``, ``[n, heads, w]`` -> ``[b, n]``; differentiable. Memory: ``b * n * heads * w`` numbers."""
        difference = queries.unsqueeze(1) - keys.unsqueeze(0)
        squared = self.measure == "cos" or self.square
        apart = (
            difference.square().sum(dim=-1) if squared else torch.linalg.vector_norm(difference, dim=-1)
        )  # [b, n, heads]
        return -self.scale * self._halved(apart).amin(dim=-1)

    def best(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest key of each query: index ``[b]`` int64 (the first of equally near ones), log-similarity ``[b]``.

        What :meth:`log_similarities` gives at its maximum, without ever holding ``b * n * width`` numbers.
        """
        found = [nearest(queries[:, head], keys[:, head]) for head in range(self.heads)]
        apart = torch.stack([each.distance for each in found], dim=1)
        index = torch.stack([each.index for each in found], dim=1)
        head = apart.argmin(dim=1, keepdim=True)
        distance = apart.gather(1, head)[:, 0]
        if self.measure == "cos" or self.square:
            distance = distance.square()
        return index.gather(1, head)[:, 0], -self.scale * self._halved(distance)

    def _halved(self, apart: Tensor) -> Tensor:
        # of unit vectors: one minus the cosine is half the squared distance
        return apart / 2 if self.measure == "cos" else apart
