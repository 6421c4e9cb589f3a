"""How large updates are: the distribution of their norms, method by method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from kedit_bench.report.charts import as_numbers, figure, ridges
from kedit_bench.report.comparable import Comparable
from kedit_bench.report.markup import Markup, foreign
from kedit_bench.report.reading import Cell
from kedit_bench.report.style import Palette, number

_NOTE = "‖ΔW‖ / ‖W‖ (Frobenius), one value for each patch and weight; the axis is logarithmic, the line is the median"


def update_sizes(table: Comparable, palette: Palette) -> Markup | None:
    """Norms of the updates over those of the weights they change; None where nothing was measured."""
    found = {cell.label: sizes for cell in table.cells if (sizes := _sizes(cell.updates))}
    if not found:
        return None
    text = {label: f"median {number(median(sizes))}" for label, sizes in found.items()}
    rows = [row for cell in table.cells for row in _places(cell)]
    heads = ("Method", "Weight", "Updates", "Median", "Smallest", "Largest", "Rank")
    return figure("", ridges(found, text, palette), as_numbers(heads, rows), note=_NOTE)


def _places(cell: Cell) -> list[list[Markup | str]]:
    """A row of figures for each weight that a method writes to."""
    by_place: dict[str, list[Mapping[str, Any]]] = {}
    for update in cell.updates:
        by_place.setdefault(str(update.get("place")), []).append(update)
    rows: list[list[Markup | str]] = []
    for place, updates in by_place.items():
        sizes = _sizes(updates)
        figures = [number(each(sizes)) if sizes else "–" for each in (median, min, max)]
        ranks = [int(update["rank"]) for update in updates if update.get("rank") is not None]
        rank = f"{min(ranks)}–{max(ranks)}" if len(set(ranks)) > 1 else str(ranks[0]) if ranks else "–"
        rows.append([foreign(cell.label), foreign(place), f"{len(updates):,}", *figures, rank])
    return rows


def _sizes(updates: Sequence[Mapping[str, Any]]) -> list[float]:
    """Relative sizes that can stand on a logarithmic axis."""
    found = [update.get("relative") for update in updates]
    return [float(size) for size in found if isinstance(size, int | float) and size > 0 and math.isfinite(size)]
