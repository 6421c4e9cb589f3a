"""Keys and gradients of edits, read micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

from kedit_core.forward import ForwardTools, Pair
from kedit_methods_meta.factors import Factors, Rows, gradient_factors
from kedit_methods_meta.hparams.malmen import MalmenEditorSettings
from kedit_methods_meta.places import Place


def read(
    forward: ForwardTools, pairs: Sequence[Pair], places: Sequence[Place], settings: MalmenEditorSettings
) -> dict[str, Factors]:
    """Keys (inputs) and gradients of all kept tokens, by name of weight; memory: one micro-batch's, and these.

    Raises MethodError for a gradient that is not finite.
    """
    rows: Rows = "answer" if settings.token == "ans" else "attended"
    return gradient_factors(
        forward, pairs, places, reduction=settings.reduction, rows=rows, portion=settings.micro_batch
    )
