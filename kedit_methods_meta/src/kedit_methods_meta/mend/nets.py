"""The networks of MEND: from normalised factors of a gradient to factors of an update.

Mitchell et al. 2022 (arXiv 2110.11309), section 3.2. A layer is ``h + max((h V^T) U^T + b, 0)`` with a scale and a
shift of its own for each weight that shares it, before the rectifier. With ``U = 0`` it is the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kedit_methods_meta.hparams.mend import Init, MendEditorSettings
from kedit_methods_meta.normaliser import Normaliser
from kedit_methods_meta.shape_nets import ShapeNet

_EPS = 1e-7  # added to deviations, as published


class LowRankLayer(nn.Module):
    """One layer of ``width`` numbers and rank ``rank``; ``init`` ``id`` is residual, ``xavier`` is not."""

    def __init__(self, width: int, rank: int, modes: int, init: Init, generator: torch.Generator | None) -> None:
        super().__init__()
        self.residual = init == "id"
        self.U = nn.Parameter(torch.zeros(width, rank))
        self.V = nn.Parameter(torch.zeros(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(modes, width))
        self.shift = nn.Parameter(torch.zeros(modes, width))
        if generator is not None:
            self._start(init, generator)

    @torch.no_grad()
    def _start(self, init: Init, generator: torch.Generator) -> None:
        if init == "id":
            self.V.copy_(torch.randn(self.V.shape, generator=generator))
        else:
            nn.init.xavier_uniform_(self.V, generator=generator)
            nn.init.xavier_uniform_(self.U, gain=nn.init.calculate_gain("relu"), generator=generator)

    def forward(self, hidden: Tensor, mode: Tensor) -> Tensor:
        """hidden: ``[R, width]``; mode: ``[R]`` which weight each row is of."""
        before = (hidden @ self.V.T) @ self.U.T + self.bias
        before = before * self.scale[mode] + self.shift[mode]
        # a clamp, whose derivative at 0 is 1: from U = 0 a rectifier with 0 there would never learn
        positive = before.clamp(min=0)
        return hidden + positive if self.residual else positive


class Net(nn.Module):
    """Layers of one width, one after another."""

    def __init__(self, width: int, modes: int, settings: MendEditorSettings, generator: torch.Generator | None) -> None:
        super().__init__()
        rank = min(settings.rank, width)
        self.layers = nn.ModuleList(
            LowRankLayer(width, rank, modes, settings.init, generator) for _ in range(settings.n_hidden + 1)
        )

    def forward(self, hidden: Tensor, mode: Tensor) -> Tensor:
        """hidden: ``[R, width]``; mode: ``[R]``."""
        for layer in self.layers:
            hidden = layer(hidden, mode)
        return hidden


class FactorNet(ShapeNet):
    """What is done to the factors of all weights of one shape.

    Args:
        width, out: of the weights' inputs and outputs, in this order: a transposed shape has a net of its own.
        modes: weights that share it.
        generator: of the first numbers; None leaves them to be loaded.
    """

    def __init__(
        self, width: int, out: int, modes: int, settings: MendEditorSettings, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.width, self.out, self.normalises = width, out, settings.norm
        self.normaliser = Normaliser(width + out, _EPS, settings.sd_floor)
        which = settings.transform
        if which == "smaller":
            which = "gradients" if width > out else "inputs"
        widths = {
            "combined": {"both": width + out},
            "separate": {"inputs": width, "gradients": out},
            "inputs": {"inputs": width},
            "gradients": {"gradients": out},
        }[which]
        self.nets = nn.ModuleDict({name: Net(size, modes, settings, generator) for name, size in widths.items()})

    def forward(self, rows: Tensor, mode: Tensor) -> tuple[Tensor, Tensor]:
        """New inputs ``[R, in]`` and new gradients ``[R, out]``; a side without a net is normalised only.

        rows: ``[R, in + out]`` inputs beside gradients; mode: ``[R]`` which of the weights each row is of. Raises
        MethodError when nothing was counted yet.
        """
        rows = rows.to(self.dtype)
        if self.normalises:
            rows = self.normaliser(rows)
        if "both" in self.nets:
            rows = self.nets["both"](rows, mode)
        inputs, gradients = torch.split(rows, [self.width, self.out], dim=-1)
        if "inputs" in self.nets:
            inputs = self.nets["inputs"](inputs, mode)
        if "gradients" in self.nets:
            gradients = self.nets["gradients"](gradients, mode)
        return inputs, gradients

    @property
    def dtype(self) -> torch.dtype:
        """That the nets compute in."""
        return next(self.nets.parameters()).dtype
