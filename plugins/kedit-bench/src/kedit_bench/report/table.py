"""The tables of results: one for each set of comparable cells, best and worst marked, the two headline protocols beside
each other with the gap between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from attrs import frozen

from kedit_bench.report.comparable import Comparable, Group, Metric, marks
from kedit_bench.report.facts import CORE, FORCED, FREE, GAP, MetricFacts, facts_of
from kedit_bench.report.markup import Markup, element, foreign, join
from kedit_bench.report.reading import Cell
from kedit_bench.report.style import Palette, percent

_SYMBOLS = {"best": "▲", "worst": "▼"}
_LAST = ("errors", "efficiency")
_ERRORS_SHOWN = ("errors.failed", "errors.over_long")  # the classes have a chart of their own


@frozen(kw_only=True)
class Column:
    """A column: heading, what is said on hover, and a value for each row.

    Attributes:
        metric: the name whose explanation (it stands once, in the glossary) is shown on hover and focus.
        lead: what is said before the explanation.
    """

    over: str
    title: str
    metric: str
    tag: str
    facts: MetricFacts
    values: Sequence[float | None]
    is_gap: bool = False
    lead: str = ""

    def cells(self) -> Iterator[Markup]:
        """One ``td`` for each row."""
        marked = marks(self.values, self.facts) if not self.is_gap else [None] * len(self.values)
        for value, mark in zip(self.values, marked, strict=True):
            yield self._cell(value, mark)

    def _cell(self, value: float | None, mark: str | None) -> Markup:
        if value is None:
            return element("td", element("span", "–", title="not measured"), class_="number none")
        if self.is_gap:
            return element("td", points(value), class_="number gap", data_v=f"{value:.6g}")
        flag = (
            element("span", _SYMBOLS[mark], element("span", f" {mark}", class_="unseen"), class_="flag") if mark else ""
        )
        shown = join(flag, self.facts.text(value))
        bar = _bar(value) if self.facts.unit == "share" and 0 <= value <= 1 else None
        return element("td", shown, bar, class_=f"number {mark or ''}".strip(), data_v=f"{value:.6g}")


def points(value: float) -> str:
    """A difference of two shares: ``+12.5``."""
    return f"{100 * value:+.1f}".replace("-", "−")


def results_table(table: Comparable, group: Group, palette: Palette) -> Markup:
    """The main table of comparable cells, with the group's failed ones below."""
    columns = list(_columns(table))
    rows = [_row_head(cell, palette) for cell in table.cells]
    caption = join(element("strong", foreign(group.model)), " · ", foreign(group.dataset), " · ", group.scenario)
    return join(
        data_table(caption, columns, table.cells, rows, palette, shown=False),
        element("p", "Measured as ", *_tags(table.tags), class_="tags"),
    )


def parts_table(table: Comparable, palette: Palette) -> Markup | None:
    """Sub-keys and statistics of every metric, as a table; None where there are none."""
    columns = list(_part_columns(table))
    if not columns:
        return None
    rows = [_row_head(cell, palette) for cell in table.cells]
    return data_table(join("Sub-keys and statistics of the metrics"), columns, table.cells, rows, palette, shown=False)


def source_tables(table: Comparable, palette: Palette) -> Iterator[Markup]:
    """One table for each source of a mixed dataset; sources are never averaged."""
    for source in dict.fromkeys(source for cell in table.cells for source in cell.by_source):
        cells = [cell for cell in table.cells if source in cell.by_source]
        columns = [
            Column(
                over=_over(metric.facts),
                title=metric.facts.title,
                metric=name,
                tag=metric.tag,
                facts=metric.facts,
                values=[cell.by_source[source].get(name) for cell in cells],
            )
            for name, metric in _in_order(table.metrics.values())
            if any(cell.by_source[source].get(name) is not None for cell in cells)
        ]
        rows = [_row_head(cell, palette) for cell in cells]
        yield data_table(join("Cases of ", element("strong", foreign(source))), columns, cells, rows, palette)


def data_table(
    caption: Markup,
    columns: Sequence[Column],
    cells: Sequence[Cell],
    heads: Sequence[Markup],
    palette: Palette,
    shown: bool = True,
) -> Markup:
    """A table with a row a cell, two rows of headings that sort, in a box that scrolls sideways.

    ``shown=False`` keeps the caption for those who hear the page; those who see it have read it just above.
    """
    over = [(name, len(list(run))) for name, run in groupby(columns, key=lambda column: column.over)]
    starts = {sum(width for _, width in over[:index]) for index in range(len(over))}
    top = [element("th", "Method", scope="col", rowspan=2, class_="method")]
    top += [element("th", name, scope="colgroup", colspan=width, class_="over") for name, width in over]
    below = [_heading(column, index in starts) for index, column in enumerate(columns)]
    body = [
        element("tr", head, values, class_="lit", data_method=palette.number(cell.label))
        for cell, head, *values in zip(cells, heads, *(column.cells() for column in columns), strict=True)
    ]
    return element(
        "div",
        element(
            "table",
            element("caption", caption, class_=None if shown else "unseen"),
            element("thead", element("tr", top), element("tr", below)),
            element("tbody", body),
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label="Table, scrolls sideways",
    )


def failures_list(failed: Sequence[Cell]) -> Markup | None:
    """What failed, and why."""
    if not failed:
        return None
    rows = [
        element("li", element("strong", foreign(cell.label)), " failed: ", foreign(cell.error, 600)) for cell in failed
    ]
    return element("ul", rows, class_="failures")


def _columns(table: Comparable) -> Iterator[Column]:
    for leaf in CORE:
        of_leaf = [metric for metric in table.metrics.values() if metric.facts.leaf == leaf]
        for metric in of_leaf:
            if table.has(metric.facts.name):
                yield _column(table, metric)
            if metric.facts.group == FORCED:
                yield from _gap(table, leaf)
    for name, metric in _in_order(metric for metric in table.metrics.values() if not metric.facts.is_core):
        if table.has(name) and (metric.facts.group != "errors" or name in _ERRORS_SHOWN):
            yield _column(table, metric)


def _column(table: Comparable, metric: Metric) -> Column:
    return Column(
        over=_over(metric.facts),
        title=metric.facts.title,
        metric=metric.facts.name,
        tag=metric.tag,
        facts=metric.facts,
        values=table.values(metric.facts.name),
    )


def _gap(table: Comparable, leaf: str) -> Iterator[Column]:
    """How much higher teacher forcing scores, where both were measured."""
    free, forced = f"{FREE}.{leaf}", f"{FORCED}.{leaf}"
    if free not in table.metrics or forced not in table.metrics:
        return
    pairs = zip(table.values(forced), table.values(free), strict=True)
    values = [None if high is None or low is None else high - low for high, low in pairs]
    if any(value is not None for value in values):
        facts = table.metrics[forced].facts
        yield Column(over=_over(facts), title=GAP, metric=GAP, tag="", facts=facts, values=values, is_gap=True)


def _part_columns(table: Comparable) -> Iterator[Column]:
    for name, metric in _in_order(table.metrics.values()):
        if metric.facts.group == "errors":
            continue
        results = [cell.evaluation.get(name) for cell in table.cells]
        parts = dict.fromkeys(part for result in results if result for part in result.parts)
        for part in parts:
            statistic = any(result is not None and part in result.statistics for result in results)
            what = f"the {part} over the cases of " if statistic else f"sub-key {part} of "
            unknown = part.startswith("base") or part == "std"
            facts = facts_of(name, metric.facts.unit, {name: {"better": None}}) if unknown else metric.facts
            yield Column(
                over=name,
                title=part.replace("_", " "),
                metric=name,
                tag=metric.tag,
                lead=what,
                facts=facts,
                values=[None if result is None else result.parts.get(part) for result in results],
            )


def _in_order(metrics: Iterable[Metric]) -> list[tuple[str, Metric]]:
    """The core's metrics first, one after another; then groups as they come; then errors, and cost last."""

    def place(metric: Metric) -> tuple[int, int]:
        core = CORE.index(metric.facts.leaf) if metric.facts.is_core else len(CORE)
        return core, _LAST.index(metric.facts.group) + 1 if metric.facts.group in _LAST else 0

    return [(metric.facts.name, metric) for metric in sorted(metrics, key=place)]


def _over(facts: MetricFacts) -> str:
    if facts.is_core:
        return facts.leaf.capitalize()
    return {"efficiency": "Cost"}.get(facts.group, facts.group.replace("_", " ").capitalize())


def _heading(column: Column, starts: bool) -> Markup:
    button = element(
        "button",
        column.title,
        type="button",
        class_="sort hint",
        data_hint=column.lead,
        data_metric=column.metric,
        data_tag=column.tag or None,
        data_better=column.facts.better,
    )
    return element("th", button, scope="col", class_="starts" if starts else None)


def _row_head(cell: Cell, palette: Palette) -> Markup:
    warned = sum(int(warning.get("count") or 1) for warning in cell.warnings)
    says = "; ".join(str(warning.get("message") or warning.get("code")) for warning in cell.warnings)
    flag = (
        element("button", f"⚠ {warned}", type="button", class_="hint warned", data_hint=f"Warnings: {says[:300]}")
        if warned
        else None
    )
    cases = max((len(result.cases) for result in cell.evaluation.values()), default=0)
    return element(
        "th",
        palette.swatch(cell.label),
        element("span", foreign(cell.label, 60), class_="name"),
        flag,
        element("span", f"{cases:,} cases", class_="cases"),
        scope="row",
        class_="method",
    )


def _bar(value: float) -> Markup:
    """The value once more, as a line under the number."""
    whole = element("rect", width="100%", height=3, rx=1.5, class_="rest")
    return element(
        "svg", whole, element("rect", width=percent(value), height=3, rx=1.5), class_="bar", aria_hidden="true"
    )


def _tags(tags: Sequence[str]) -> list[Markup]:
    return [join(element("code", tag), " ") for tag in tags]
