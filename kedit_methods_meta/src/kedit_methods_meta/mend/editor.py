"""A MEND editor: nets, a step size for each edited weight, and how factors become an update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from kedit_methods_meta.edited import LowRank
from kedit_methods_meta.factors import Factors
from kedit_methods_meta.hparams.mend import MendEditorSettings
from kedit_methods_meta.mend.nets import FactorNet
from kedit_methods_meta.places import Place
from kedit_methods_meta.shape_nets import EditorModule


class MendEditor(EditorModule):
    """``W <- W + sign * alpha * sum_r delta^_r x^_r^T`` for each edited weight, from the factors of its gradient.

    Mitchell et al. 2022 (arXiv 2110.11309), section 3. The sum is over rows, so longer edits get larger updates.

    Args:
        places: the edited weights, in the model's order.
        alpha: each one's first step size.
        generator: of the nets' first numbers; None for an editor whose numbers are loaded.
    """

    settings_class = MendEditorSettings
    settings: MendEditorSettings

    def __init__(
        self,
        places: Sequence[Place],
        settings: MendEditorSettings,
        alpha: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(places, settings, settings.shared, generator)
        self.alpha = nn.Parameter(torch.full((len(self.places),), alpha))

    def make_net(self, width: int, out: int, modes: int, generator: torch.Generator | None) -> FactorNet:
        return FactorNet(width, out, modes, self.settings, generator)

    def forward(self, factors: Mapping[str, Factors], strength: float = 1.0) -> dict[str, LowRank]:
        """The edit that these factors, by name of weight, are made into; differentiable in all parameters.

        Raises MethodError for an editor that was never trained.
        """
        found: dict[str, LowRank] = {}
        for group in self.groups(factors):
            inputs, gradients = (torch.split(part, list(group.sizes)) for part in group.net(group.rows, group.mode))
            for name, x, delta in zip(group.names, inputs, gradients, strict=True):
                step = self.settings.sign * strength * self.alpha[self.number(name)]
                found[name] = LowRank(x, step * delta, factors[name].edit)
        return {place.name: found[place.name] for place in self.places if place.name in found}
