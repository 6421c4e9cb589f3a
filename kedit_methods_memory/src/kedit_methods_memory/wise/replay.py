"""Replay: while a side memory is trained, earlier merges' prompts are held down, and one of its own group's up.

Wang et al. 2024, appendix B.3; only with retrieval, after the first merge.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.forward import ForwardTools
from kedit_core.requests import EditRequest
from kedit_methods_memory.projections import Projection
from kedit_methods_memory.wise.activation import Phi
from kedit_methods_memory.wise.lesson import read_prompts
from kedit_methods_memory.wise.losses import violating


@frozen(eq=False)
class Replay:
    """Further loss of a training.

    Attributes:
        forward, place, templates, phi: as in the lesson.
        earlier: edits of each earlier merge, one of which is asked at each step, in turn.
        own: edits since the last merge, those of this round included, one of which is drawn at each step.
        low, high: where their routing activations are held.
        begun: steps that earlier rounds took, so that turns go on.
        generator: draws among ``own``.
    """

    forward: ForwardTools
    place: Projection
    templates: Sequence[str]
    phi: Phi | None
    earlier: Sequence[Sequence[EditRequest]]
    own: Sequence[EditRequest]
    low: float
    high: float
    begun: int
    generator: torch.Generator

    def __call__(self, delta: Tensor, step: int) -> tuple[float, Tensor]:
        """The loss at ``delta``, and its gradient."""
        turn = self.begun + step
        drawn = self.own[int(torch.randint(len(self.own), (1,), generator=self.generator))]
        held = [group[turn % len(group)] for group in self.earlier]
        with torch.enable_grad():
            free = delta.detach().requires_grad_()
            down = torch.stack([violating(self._activations(each, free) - self.low) for each in held]).mean()
            loss = down + violating(self.high - self._activations(drawn, free))
            return float(loss.detach()), torch.autograd.grad(loss, free)[0]

    def _activations(self, request: EditRequest, delta: Tensor) -> Tensor:
        with torch.no_grad():
            read = read_prompts(self.forward, self.place, [request], self.templates)
        return read.activations(read.change(delta), self.phi)
