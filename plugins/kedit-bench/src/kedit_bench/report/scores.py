"""Scores and costs of comparable cells as bars."""

from __future__ import annotations

from collections.abc import Iterator

from kedit_bench.report.charts import Row, bars, figure, share_text
from kedit_bench.report.comparable import Comparable
from kedit_bench.report.facts import CORE, FORCED, SHORT
from kedit_bench.report.markup import Markup, element, join
from kedit_bench.report.style import Palette
from kedit_bench.report.table import points


def score_bars(table: Comparable, palette: Palette) -> Iterator[Markup]:
    """A chart for each of the core's metrics: free generation as a bar, teacher-forced as a tick."""
    free = table.headline
    for leaf in CORE:
        name, other = f"{free}.{leaf}", f"{FORCED}.{leaf}"
        if name not in table.metrics or not table.has(name):
            continue
        forced = table.values(other) if other in table.metrics and other != name else [None] * len(table.cells)
        rows = [
            _score_row(cell.label, low, high, free)
            for cell, low, high in zip(table.cells, table.values(name), forced, strict=True)
        ]
        yield figure(leaf.capitalize(), bars(rows, palette))


def cost_bars(table: Comparable, palette: Palette) -> Iterator[Markup]:
    """A chart for each cost, as long as the dearest."""
    for name, metric in table.metrics.items():
        values = table.values(name)
        known = [value for value in values if value is not None]
        if metric.facts.group != "efficiency" or not known or max(known) <= 0:
            continue
        rows = [
            Row(
                label=cell.label,
                bar=None if value is None else value / max(known),
                text=metric.facts.text(value),
                spoken=f"{cell.label}: {metric.facts.text(value)}",
            )
            for cell, value in zip(table.cells, values, strict=True)
        ]
        yield figure(metric.facts.title, bars(rows, palette))


def _score_row(label: str, free: float | None, forced: float | None, protocol: str) -> Row:
    text = share_text(free)
    spoken = f"{label}: {SHORT.get(protocol, protocol)} {text}"
    if forced is not None:
        spoken += f", teacher-forced {share_text(forced)}"
    gap = None if free is None or forced is None else element("small", points(forced - free))
    return Row(label=label, bar=free, tick=forced, text=join(text, gap), spoken=spoken)
