"""The margin loss, by which a side memory learns to react to its edits and to nothing else."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from kedit_methods_memory.hparams.wise import WiseHyperParams


@frozen
class Margins:
    """``alpha`` for irrelevant texts, ``beta`` for edits, ``gamma`` between both (Wang et al. 2024, equation 6)."""

    alpha: float
    beta: float
    gamma: float

    @classmethod
    def of(cls, hparams: WiseHyperParams) -> Margins:
        """Those of the settings."""
        return cls(hparams.alpha, hparams.beta, hparams.gamma)

    def loss(self, inside: Tensor, outside: Tensor, pairs: Tensor) -> Tensor:
        """``relu(D_out - alpha) + relu(beta - D_in) + relu(gamma - (D_in - D_out))``, each over what violates it.

        Args:
            inside: ``[n]`` routing activations of the edits' rows.
            outside: ``[m]`` those of irrelevant texts.
            pairs: ``[p, 2]`` which of them are to be apart.
        """
        apart = inside[pairs[:, 0]] - outside[pairs[:, 1]]
        return violating(outside - self.alpha) + violating(self.beta - inside) + violating(self.gamma - apart)


def violating(excess: Tensor) -> Tensor:
    """Mean of the positive entries; 0 when there is none."""
    return torch.relu(excess).sum() / (excess > 0).sum().clamp(min=1)
