"""Wrong answers by class, where the metrics ``errors`` were measured."""

from __future__ import annotations

from collections.abc import Mapping

from kedit_bench.report.charts import as_numbers, figure, stacked
from kedit_bench.report.comparable import Comparable
from kedit_bench.report.markup import Markup, element, foreign
from kedit_bench.report.reading import Cell
from kedit_bench.report.style import Palette

GROUP = "errors"
COUNT = f"{GROUP}.count"
_CLASSES: Mapping[str, str] = {
    "meaningless": "nothing is said, or repetition",
    "partial": "something of the new answer beside something of the old one",
    "missing": "a part of the new answer is missing",
    "irrelevant": "something else is said",
    "unchanged": "still the base's answer",
}


def error_classes(table: Comparable, palette: Palette) -> Markup | None:
    """Wrong answers by class, a row a method; None where the metrics ``errors`` were not measured."""
    counted = [(cell, found) for cell in table.cells if (found := _counts(cell))]
    if not counted:
        return None
    rows = [_row(cell, found, palette) for cell, found in counted]
    numbers = [[foreign(cell.label), *(f"{value:,.4g}" for value in found.values())] for cell, found in counted]
    return figure(
        "",
        element("div", rows, class_="rows"),
        element("ul", [_legend(name, what) for name, what in _CLASSES.items()], class_="legend"),
        as_numbers(["Method", *_CLASSES], numbers),
        note="each row is all wrong answers of one method; how many stands beside it",
    )


def _row(cell: Cell, counts: Mapping[str, float], palette: Palette) -> Markup:
    whole = sum(counts.values())
    text = f"{whole:,.0f} wrong" if COUNT in cell.evaluation else "shares"
    return stacked(cell.label, [(f"e-{name}", value / whole) for name, value in counts.items() if value], text, palette)


def _legend(name: str, what: str) -> Markup:
    shape = element("rect", width=12, height=12, rx=2, class_=f"e-{name}")
    swatch = element("svg", shape, class_="swatch", width=12, height=12, aria_hidden="true")
    return element("li", swatch, element("strong", name), f" {what}")


def _counts(cell: Cell) -> dict[str, float]:
    """Failures by class: counted where the bench has counts, else their shares.

    ``unchanged`` is a part of ``irrelevant`` in the metrics; here it stands for itself.
    """
    total = cell.evaluation.get(COUNT)
    if total is not None:
        found = {name: sum(total.case_parts.get(name, {}).values()) for name in _CLASSES}
    elif any(f"{GROUP}.{name}" in cell.evaluation for name in _CLASSES):
        results = {name: cell.evaluation.get(f"{GROUP}.{name}") for name in _CLASSES}
        found = {name: (result.value or 0.0) if result else 0.0 for name, result in results.items()}
    else:
        return {}
    return {**found, "irrelevant": max(0.0, found["irrelevant"] - found["unchanged"])}
