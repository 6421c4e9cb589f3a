"""What KE's training minimises, under bounds whose multipliers climb (De Cao et al. 2021, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import define
from torch import Tensor

from kedit_core.training.losses import log_softmax
from kedit_methods_meta.edited import LowRank


def smoothed_nll(logits: Tensor, tokens: Tensor, smoothing: float) -> Tensor:
    """``[n]`` label-smoothed negative log-likelihood of each token: ``(1 - e - e') nll + e' sum_v -log p_v``.

    ``e' = e / (V - 1)``: the true token keeps ``1 - e``, and each other one has ``e'``.

    Args:
        logits: ``[n, V]``. tokens: ``[n]``. smoothing: e.
    """
    logs = log_softmax(logits)
    each = smoothing / (logs.shape[-1] - 1)
    nll = -logs.gather(1, tokens.unsqueeze(1)).squeeze(1)
    return (1 - smoothing - each) * nll - each * logs.sum(-1)


def weight_change(edits: Mapping[str, LowRank], count: int) -> Tensor:
    """Root mean square of a weight's change, mean over weights and edits, without forming it.

    ``|sum_r u_r v_r^T|^2 = sum_rs (u_r . u_s)(v_r . v_s)``.

    Args:
        edits: by name of weight. count: of edits, numbered from 0.
    """
    found = []
    for change in edits.values():
        inputs, outputs = change.inputs, change.outputs
        together = (inputs @ inputs.T) * (outputs @ outputs.T)
        together = together * (change.edit.unsqueeze(0) == change.edit.unsqueeze(1))
        squared = inputs.new_zeros(count).index_add(0, change.edit, together.sum(1))
        # the root has no gradient at 0, and rounding may go below it
        found.append((squared / (inputs.shape[1] * outputs.shape[1])).clamp(min=1e-24).sqrt())
    return torch.stack(found).mean()


def bounded(multiplier: Tensor, value: Tensor, margin: float) -> Tensor:
    """``alpha (value - margin)``, whose gradient makes an optimiser that descends climb in alpha."""
    excess = value - margin
    climbing = multiplier * excess.detach()
    return multiplier.detach() * excess - climbing + climbing.detach()


@define
class Margin:
    """A bound that is tightened as edits succeed.

    Attributes:
        value: where it is. lowest: where it stops.
    """

    value: float
    lowest: float

    def tighten(self, decay: float) -> None:
        """``max(decay * value, lowest)``."""
        self.value = max(decay * self.value, self.lowest)
