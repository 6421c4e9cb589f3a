"""Keys and gradients of edits, read micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kedit_core.forward import ForwardTools, Pair
from kedit_methods_meta.factors import Factors, Rows, gradient_factors
from kedit_methods_meta.hparams.malmen import MalmenEditorSettings
from kedit_methods_meta.malmen.spill import Spill
from kedit_methods_meta.places import Place


def read(
    forward: ForwardTools,
    pairs: Sequence[Pair],
    places: Sequence[Place],
    settings: MalmenEditorSettings,
    spill: Path | None = None,
    *,
    check: bool = True,
) -> dict[str, Factors]:
    """Keys (inputs) and gradients of all kept tokens, by name of weight.

    Args:
        spill: a folder to keep them in, in files without a name, mapped into memory.
        check: refuse gradients that are not finite.

    Memory: one micro-batch's activations, and 4 (in + out) bytes for each token and weight unless they are spilled.

    Raises MethodError for a gradient that is not finite.
    """
    rows: Rows = "answer" if settings.token == "ans" else "attended"
    size = settings.micro_batch
    if spill is None:
        return gradient_factors(
            forward, pairs, places, reduction=settings.reduction, rows=rows, portion=size, check=check
        )
    kept = Spill(spill)
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        found = gradient_factors(
            forward, part, places, reduction=settings.reduction, rows=rows, portion=size, check=check
        )
        numbers = torch.arange(start, start + len(part))
        kept.add({name: each.of(numbers) for name, each in found.items()})
    return kept.factors()
