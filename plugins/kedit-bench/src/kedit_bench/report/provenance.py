"""What the numbers were made with: time and settings of each cell, and the manifest and spec of the bench."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kedit_bench.report.ability import general_ability
from kedit_bench.report.charts import as_numbers, figure, stacked
from kedit_bench.report.comparable import Group
from kedit_bench.report.markup import Markup, element, foreign, join
from kedit_bench.report.reading import Bench, Cell
from kedit_bench.report.style import Palette
from kedit_core.evaluation.report import format_value

_PARTS: Mapping[str, str] = {
    "load": "loading the model",
    "base": "answers of the base",
    "edit": "computing the edits",
    "evaluate": "answers after the edits",
}
_LONGEST = 400


def time_spent(cells: Sequence[Cell], palette: Palette) -> Markup | None:
    """Seconds of each cell by what they were spent on; None where nothing was recorded."""
    timed = [cell for cell in cells if _total(cell) > 0]
    if not timed:
        return None
    longest = max(_total(cell) for cell in timed)
    rows = [
        stacked(
            cell.label,
            [(f"t-{part}", cell.seconds.get(part, 0.0) / longest) for part in _PARTS],
            format_value(_total(cell), "seconds"),
            palette,
        )
        for cell in timed
    ]
    legend = [element("li", _swatch(part), what) for part, what in _PARTS.items()]
    numbers = [
        [foreign(cell.label), *(format_value(cell.seconds.get(part), "seconds") for part in _PARTS)] for cell in timed
    ]
    return figure(
        "Where the time went",
        element("div", rows, class_="rows"),
        element("ul", legend, class_="legend"),
        as_numbers(["Method", *_PARTS], numbers),
    )


def settings(group: Group, palette: Palette) -> Iterator[Markup]:
    """A block a cell: its warnings, hparams and where they are from, and its results on general tasks."""
    for cell in (*group.cells, *group.failed):
        yield element(
            "details",
            element(
                "summary", palette.swatch(cell.label), foreign(cell.label, 60), element("small", f"cell {cell.id}")
            ),
            _warnings(cell.warnings),
            _pairs(cell.hparams),
            element("p", "from ", foreign(cell.hparams_source, _LONGEST), class_="note")
            if cell.hparams_source
            else None,
            general_ability(cell.ability) if cell.ability else None,
        )


def manifest(bench: Bench) -> Markup:
    """Manifest and spec, whole."""
    return join(
        element("h3", "Manifest"),
        _pairs(_flat(bench.manifest)),
        element("details", element("summary", "Spec"), _json(bench.spec), open=True),
    )


def _total(cell: Cell) -> float:
    return sum(cell.seconds.get(part, 0.0) for part in _PARTS)


def _swatch(part: str) -> Markup:
    shape = element("rect", width=12, height=12, rx=2, class_=f"t-{part}")
    return element("svg", shape, class_="swatch", width=12, height=12, aria_hidden="true")


def _warnings(warnings: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not warnings:
        return None
    rows = [
        element(
            "li",
            element("code", warning.get("code")),
            f" ×{warning.get('count', 1)} ",
            foreign(warning.get("message"), 600),
        )
        for warning in warnings
    ]
    return element("ul", rows, class_="warnings")


def _pairs(values: Mapping[str, Any]) -> Markup:
    rows = [
        element("div", element("dt", foreign(name, 120)), element("dd", foreign(_plain(value), _LONGEST)))
        for name, value in values.items()
    ]
    return element("dl", rows, class_="pairs")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def _json(value: Any) -> Markup:
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    box = element("code", foreign(text, 20_000))
    return element("pre", box, tabindex=0, role="region", aria_label="Spec as JSON")
