"""Hard negatives: prompts of records whose own prompts read alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from attrs import frozen
from torch import Tensor

Embed: TypeAlias = Callable[[Sequence[str]], Tensor]


@frozen(eq=False, kw_only=True)
class Neighbours:
    """The records near each record by the cosine of their prompts' vectors.

    Attributes:
        vectors: ``[records, width]`` of length 1. ids: of the records.
        near, far: drawn from the ``far`` nearest but the first ``near`` (which may be paraphrases that nobody marked).
        temperature: they are weighted by ``exp(cosine / temperature)``.
    """

    vectors: Tensor
    ids: tuple[str, ...]
    near: int
    far: int
    temperature: float

    @classmethod
    def among(
        cls, prompts: Sequence[str], ids: Sequence[str], embed: Embed, near: int, far: int, temperature: float
    ) -> Neighbours:
        """Those of some prompts, by the vectors that ``embed`` gives ``[texts, width]``."""
        vectors = embed(prompts).detach().float().cpu()
        lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(1e-12)
        return cls(vectors=vectors / lengths, ids=tuple(ids), near=near, far=far, temperature=temperature)

    def draw(self, index: int, generator: torch.Generator) -> int | None:
        """A near record of another id; None when there is none within reach."""
        cosines = self.vectors @ self.vectors[index]
        other = torch.tensor([each != self.ids[index] for each in self.ids])
        cosines = torch.where(other, cosines, torch.full_like(cosines, -torch.inf))
        found = cosines.topk(min(self.far, int(other.sum())))
        if found.indices.numel() <= self.near:
            return None
        weights = torch.softmax(found.values[self.near :].double() / self.temperature, dim=0)
        return int(found.indices[self.near :][torch.multinomial(weights, 1, generator=generator)])
