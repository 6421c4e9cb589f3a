"""The first look: how much was run, and every method at every place as four small bars."""

from __future__ import annotations

from collections.abc import Sequence

from kedit_bench.report.charts import share_text
from kedit_bench.report.comparable import Comparable, Group
from kedit_bench.report.facts import CORE, SHORT
from kedit_bench.report.markup import Markup, element, foreign, join
from kedit_bench.report.reading import Bench, Cell
from kedit_bench.report.style import Palette

_WIDTH, _HEIGHT = 12, 34  # of one small bar, in pixels


def tiles(bench: Bench) -> Markup:
    """Counts of what ran, as a row of figures."""
    failed = sum(cell.error is not None for cell in bench.cells)
    counts = [
        (len({cell.label for cell in bench.cells}), "method", "methods"),
        (len({cell.model for cell in bench.cells}), "model", "models"),
        (len({cell.dataset for cell in bench.cells}), "dataset", "datasets"),
        (len(bench.cells) - failed, "cell done", "cells done"),
    ]
    shown: list[tuple[str, str, str | None]] = [
        (f"{count:,}", one if count == 1 else many, None) for count, one, many in counts
    ]
    if failed:
        shown.append((f"{failed:,}", "cell failed" if failed == 1 else "cells failed", "bad"))
    seconds = bench.manifest.get("seconds")
    if isinstance(seconds, int | float):
        shown.append((duration(seconds), "in all", None))
        spent = {part: sum(cell.seconds.get(part, 0.0) for cell in bench.cells) for part in ("edit", "evaluate")}
        shown += [(duration(spent["edit"]), "editing", None), (duration(spent["evaluate"]), "evaluating", None)]
    return element(
        "ul",
        [
            element("li", element("b", figure), element("span", f" {what}"), class_=class_)
            for figure, what, class_ in shown
        ],
        class_="tiles",
    )


def duration(seconds: float) -> str:
    """``48 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def overview(groups: Sequence[Group], palette: Palette) -> Markup | None:
    """A row a method, a column a set of comparable cells; None where there is one such set only."""
    columns = [(group, table) for group in groups for table in group.tables]
    columns += [(group, Comparable(cells=(), metrics={})) for group in groups if not group.tables]
    if len(columns) < 2:
        return None
    head = [element("th", "Method", scope="col", class_="method"), *(_head(group, table) for group, table in columns)]
    labels = dict.fromkeys(cell.label for group in groups for cell in (*group.cells, *group.failed))
    body = [
        element(
            "tr",
            element("th", palette.swatch(label), foreign(label, 40), scope="row", class_="method"),
            [_cell(label, group, table, palette) for group, table in columns],
            class_="lit",
            data_method=palette.number(label),
        )
        for label in labels
    ]
    names = ", ".join(CORE[:-1]) + f" and {CORE[-1]}"
    caption = (
        f"Left to right in each box: {names}, 0 to 100 %; the number is {CORE[0]}. Each column is a thing of its own."
    )
    table = element(
        "table",
        element("caption", "Core metrics of every method", class_="unseen"),
        element("thead", element("tr", head)),
        element("tbody", body),
        class_="overview",
    )
    box = element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Overview, scrolls sideways")
    return join(element("p", caption, class_="note"), box)


def place_of(group: Group) -> dict[str, str]:
    """The attributes that filters look at."""
    return {"data_model": group.model, "data_dataset": group.dataset, "data_scenario": group.scenario}


def _head(group: Group, table: Comparable) -> Markup:
    ways = {way for tag in table.tags if (way := tag.partition("+")[2])} if len(group.tables) > 1 else set()
    small = [element("small", text) for text in (group.dataset, group.scenario, *sorted(ways))]
    link = element("a", element("span", foreign(group.model, 40)), small, href=f"#{group.anchor}")
    return element("th", link, scope="col", **place_of(group))


def _cell(label: str, group: Group, table: Comparable, palette: Palette) -> Markup:
    cell = next((each for each in table.cells if each.label == label), None)
    failed = any(each.label == label for each in group.failed)
    if cell is None:
        shown = element("span", "failed", class_="bad") if failed else element("span", "·", class_="none")
        return element("td", shown, **place_of(group))
    return element("td", _glyph(cell, table.headline, palette), **place_of(group))


def _glyph(cell: Cell, protocol: str, palette: Palette) -> Markup:
    values = [
        result.value if (result := cell.evaluation.get(f"{protocol}.{leaf}")) is not None else None for leaf in CORE
    ]
    shapes = []
    for index, value in enumerate(values):
        at = {"x": index * (_WIDTH + 3), "width": _WIDTH}
        shapes.append(element("rect", y=0, height=_HEIGHT, class_="rest", **at))
        if value is not None:
            high = round(min(max(value, 0.0), 1.0) * _HEIGHT, 1)
            shapes.append(element("rect", y=round(_HEIGHT - high, 1), height=high, **at))
    said = ", ".join(
        f"{leaf} {share_text(value)}" for leaf, value in zip(CORE, values, strict=True) if value is not None
    )
    drawn = element(
        "svg",
        element("title", f"{cell.label}, {SHORT.get(protocol, protocol)}: {said}"),
        shapes,
        width=4 * (_WIDTH + 3) - 3,
        height=_HEIGHT,
        role="img",
        class_=f"glyph {palette.classes(cell.label)}",
    )
    return join(drawn, element("span", share_text(values[0])))
