"""What a patch tells of each fact that was written: numbers only, all from the computation."""

from __future__ import annotations

from typing import Any

from kedit_methods_locate.rows import Rewrite
from kedit_methods_locate.value import Values


def fact_record(rows: Rewrite, values: Values, number: int = 0, **more: float | None) -> dict[str, Any]:
    """The record of fact ``number`` of a value search, JSON-able; ``more`` is what the method adds.

    ``token`` is where it was read, ``steps`` counts updates, and ``relative_norm`` has |delta| / |v0| for each output
    that a vector was searched for.
    """
    moved = {
        part: float(delta[number].norm() / values.clean.value_of(part)[number].to(delta).norm())
        for part, delta in values.deltas.items()
    }
    return {
        "token": rows.rows[0].index,
        "loss": float(values.loss[number]),
        "probability": float(values.probability[number]),
        "steps": len(values.traces[number]) - 1,
        "relative_norm": moved,
        **more,
    }
