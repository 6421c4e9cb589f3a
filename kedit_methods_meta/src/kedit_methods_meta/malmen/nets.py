"""The networks of MALMEN: from keys and gradients of their values to pseudo-keys and pseudo-gradients.

Tan et al. 2024 (arXiv 2311.04661), section 3.1 and appendix. A block is ``h + scale * max(h A B + bias, 0) + shift``,
the scale and shift a weight's own and, other than MEND's, behind the rectifier.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kedit_methods_meta.hparams.malmen import MalmenEditorSettings
from kedit_methods_meta.normaliser import Normaliser
from kedit_methods_meta.shape_nets import ShapeNet

_EPS = torch.finfo(torch.float32).eps


class Block(nn.Module):
    """One residual block of ``width`` numbers and rank ``rank``; the identity where ``B`` and ``shift`` are 0."""

    def __init__(self, width: int, rank: int, modes: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(width, rank))
        self.B = nn.Parameter(torch.zeros(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(modes, width))
        self.shift = nn.Parameter(torch.zeros(modes, width))
        if generator is not None:
            with torch.no_grad():
                self.A.copy_(torch.randn(self.A.shape, generator=generator))

    def forward(self, hidden: Tensor, mode: Tensor) -> Tensor:
        """hidden: ``[R, width]``; mode: ``[R]`` which weight each row is of."""
        # a clamp, whose derivative at 0 is 1: from B = 0 a rectifier with 0 there would never learn
        positive = ((hidden @ self.A) @ self.B + self.bias).clamp(min=0)
        return hidden + (self.scale[mode] * positive + self.shift[mode])


class KeyNet(ShapeNet):
    """What is done to the rows of all weights of one shape."""

    def __init__(
        self, width: int, out: int, modes: int, settings: MalmenEditorSettings, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.width, self.out = width, out
        self.normaliser = Normaliser(width + out, _EPS)
        rank = min(settings.rank, width + out)
        self.blocks = nn.ModuleList(Block(width + out, rank, modes, generator) for _ in range(settings.n_blocks))

    def forward(self, rows: Tensor, mode: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-keys ``[R, in]`` and pseudo-gradients ``[R, out]`` of rows ``[R, in + out]`` keys beside gradients.

        mode: ``[R]`` which of the weights each row is of. Raises MethodError when nothing was counted yet.
        """
        hidden = self.normaliser(rows.to(next(self.blocks.parameters()).dtype))
        for block in self.blocks:
            hidden = block(hidden, mode)
        keys, gradients = torch.split(hidden, [self.width, self.out], dim=-1)
        return keys, gradients
