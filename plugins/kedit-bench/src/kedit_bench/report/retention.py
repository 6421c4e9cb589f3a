"""How sequences hold their facts: over checkpoints, right away against at the end, and by age."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from kedit_bench.report.charts import Row, as_numbers, figure, lines, share_text, spans
from kedit_bench.report.comparable import Comparable
from kedit_bench.report.facts import CORE
from kedit_bench.report.markup import Markup, element, foreign
from kedit_bench.report.reading import Cell
from kedit_bench.report.style import Palette

Place = TypeVar("Place")


def retention(table: Comparable, palette: Palette) -> Iterator[Markup]:
    """How a sequence holds its facts: over checkpoints, right away against at the end, and by age."""
    cells = [cell for cell in table.cells if cell.scenario.kind == "sequential"]
    yield from _curves(cells, table.headline, palette)
    yield from _immediate(cells, table.headline, palette)
    yield from _ages(cells, table.headline, palette)


def _curves(cells: Sequence[Cell], protocol: str, palette: Palette) -> Iterator[Markup]:
    edits = sorted({count for cell in cells for count, _ in cell.checkpoints})
    if len(edits) < 2:
        return
    places = _log_places(edits)
    for leaf in CORE:
        found = {
            cell.label: {
                count: result.value
                for count, evaluation in cell.checkpoints
                if (result := evaluation.get(f"{protocol}.{leaf}")) is not None and result.value is not None
            }
            for cell in cells
        }
        if any(found.values()):
            ticks = [(places[count], f"{count:,}") for count in edits]
            yield _curve_figure(f"{leaf.capitalize()} after so many edits", found, places, ticks, palette)


def _immediate(cells: Sequence[Cell], protocol: str, palette: Palette) -> Iterator[Markup]:
    for leaf in CORE:
        name = f"{protocol}.{leaf}"
        rows = []
        for cell in cells:
            first, final = cell.immediate.get(name), _value(cell, name)
            if first is not None and final is not None:
                spoken = f"{cell.label}: {share_text(first)} right after its round, {share_text(final)} at the end"
                text = element("span", f"{share_text(first)} → {share_text(final)}")
                rows.append(Row(label=cell.label, bar=final, tick=first, text=text, spoken=spoken))
        if rows:
            note = "○ right after a fact's own round, ● after the last one"
            yield figure(f"{leaf.capitalize()}, at once and at the end", spans(rows, palette), note=note)


def _ages(cells: Sequence[Cell], protocol: str, palette: Palette) -> Iterator[Markup]:
    buckets = sorted({(int(age["from"]), int(age["to"])) for cell in cells for age in cell.ages})
    if not buckets:
        return
    places = {bucket: (index + 0.5) / len(buckets) for index, bucket in enumerate(buckets)}
    ticks = [(places[low, high], f"{low}–{high}" if low != high else f"{low}") for low, high in buckets]
    for leaf in CORE:
        name = f"{protocol}.{leaf}"
        found = {
            cell.label: {
                (int(age["from"]), int(age["to"])): age["metrics"][name]
                for age in cell.ages
                if age["metrics"].get(name) is not None
            }
            for cell in cells
        }
        if any(found.values()):
            yield _curve_figure(f"{leaf.capitalize()} by age (rounds since written)", found, places, ticks, palette)


def _curve_figure(
    title: str,
    found: Mapping[str, Mapping[Place, float]],
    places: Mapping[Place, float],
    ticks: Sequence[tuple[float, str]],
    palette: Palette,
) -> Markup:
    """Lines, and the same numbers as a table that can be opened."""
    series = {
        label: [(places[at], value) for at, value in sorted(values.items(), key=lambda pair: places[pair[0]])]
        for label, values in found.items()
    }
    spoken = "; ".join(
        f"{label} from {share_text(line[0][1])} to {share_text(line[-1][1])}" for label, line in series.items() if line
    )
    rows = [
        [foreign(label), *(share_text(dict(line).get(place)) for place, _ in ticks)] for label, line in series.items()
    ]
    numbers = as_numbers(["Method", *(text for _, text in ticks)], rows)
    return figure(title, lines(series, ticks, palette, spoken), numbers)


def _log_places(counts: Sequence[int]) -> dict[int, float]:
    """Counts over the width by their logarithm, so that 1, 10 and 100 are evenly apart."""
    low, high = math.log(max(counts[0], 1)), math.log(counts[-1])
    return {count: (math.log(max(count, 1)) - low) / (high - low) for count in counts}


def _value(cell: Cell, name: str) -> float | None:
    return cell.evaluation[name].value if name in cell.evaluation else None
