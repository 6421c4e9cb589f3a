"""What is said of an edit whose target is still unlikely after training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kedit_core.editing import EditContext

_REACHED = 0.5  # probability of a target's token, geometric mean


def warn_missed(context: EditContext, losses: Sequence[float], remedy: str) -> None:
    """Warn ``target_not_reached`` with the share of facts whose target is below a probability of 0.5 a token.

    losses: of each fact, mean over its target's tokens.
    """
    missed = sum(math.exp(-loss) < _REACHED for loss in losses)
    if missed:
        context.warn(
            "target_not_reached",
            missed / len(losses),
            remedy,
            f"training left {missed} of {len(losses)} targets below a probability of {_REACHED} a token",
        )
