"""Charts as inline SVG in HTML rows: text stays text at every width, shapes are placed in percent.

A chart draws; what is drawn, and its table for those who cannot see it, is for the sections to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from attrs import frozen

from kedit_bench.report.markup import Markup, element, foreign, join
from kedit_bench.report.style import Palette, percent

_HEIGHT = 190  # pixels of a line chart
_BINS = 48


@frozen(kw_only=True)
class Row:
    """One method's row of a chart; places are shares of the track's width."""

    label: str
    bar: float | None = None
    tick: float | None = None
    text: Markup | str = ""
    spoken: str = ""


def figure(title: str, *body: object, note: str = "") -> Markup:
    """A chart with its title (none where a heading just above says it) and how to read it."""
    caption = element(
        "figcaption",
        element("strong", title) if title else None,
        element("span", note, class_="note") if note else None,
    )
    return element("figure", caption, *body)


def as_numbers(heads: Sequence[str], rows: Sequence[Sequence[Markup | str]]) -> Markup:
    """The numbers of a chart as a table that can be opened; a row's first entry is its heading."""
    head = element("tr", [element("th", name, scope="col") for name in heads])
    body = [
        element("tr", element("th", first, scope="row"), [element("td", value) for value in rest])
        for first, *rest in rows
    ]
    table = element("table", element("thead", head), element("tbody", body), class_="small")
    box = element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Numbers of the chart")
    return element("details", element("summary", "as numbers"), box, class_="numbers")


def share_text(value: float | None) -> str:
    """A share as percent, a dash for none."""
    return "–" if value is None else f"{100 * value:.1f} %"


def bars(rows: Sequence[Row], palette: Palette) -> Markup:
    """A bar a method and, where a row has one, a tick with a line from the bar's end to it."""
    return element("div", [_track_row(row, palette, _bar_shapes(row)) for row in rows], class_="rows")


def spans(rows: Sequence[Row], palette: Palette) -> Markup:
    """From a ring (``tick``) to a full point (``bar``): what was, and what is left of it."""
    return element("div", [_track_row(row, palette, _span_shapes(row)) for row in rows], class_="rows")


def stacked(label: str, shares: Sequence[tuple[str, float]], text: str, palette: Palette) -> Markup:
    """One method's row of segments; ``shares`` are (CSS class, share of the width)."""
    shapes, at = [], 0.0
    for class_, share in shares:
        if share > 0:
            shapes.append(element("rect", x=percent(at), width=percent(share), y=3, height=16, class_=class_))
        at += share
    spoken = f"{label}: {text}"
    return _track_row(Row(label=label, text=text, spoken=spoken), palette, shapes, rest=False)


def _track_row(row: Row, palette: Palette, shapes: Sequence[Markup], rest: bool = True) -> Markup:
    ground = element("rect", width="100%", y=3, height=16, rx=2, class_="rest") if rest else None
    drawn = element(
        "svg", ground, shapes, class_=f"track {palette.classes(row.label)}", role="img", aria_label=row.spoken
    )
    return element(
        "div",
        element("span", palette.swatch(row.label), foreign(row.label, 40), class_="who"),
        drawn,
        element("span", row.text, class_="value"),
        class_="row lit",
        data_method=palette.number(row.label),
    )


def _bar_shapes(row: Row) -> list[Markup]:
    shapes = []
    if row.bar is not None:
        shapes.append(element("rect", width=percent(row.bar), y=3, height=16, rx=2, class_="fill"))
    if row.tick is not None:
        left, right = sorted((row.bar or 0.0, row.tick))
        shapes.append(element("rect", x=percent(left), width=percent(right - left), y=9, height=4, class_="between"))
        shapes.append(element("line", x1=percent(row.tick), x2=percent(row.tick), y1=0, y2=22, class_="tick"))
    return shapes


def _span_shapes(row: Row) -> list[Markup]:
    shapes = []
    if row.bar is not None and row.tick is not None:
        line = {"x1": percent(row.tick), "x2": percent(row.bar), "y1": 11, "y2": 11}
        shapes.append(element("line", class_="from", **line))
    if row.tick is not None:
        shapes.append(element("circle", cx=percent(row.tick), cy=11, r=5, class_="ring"))
    if row.bar is not None:
        shapes.append(element("circle", cx=percent(row.bar), cy=11, r=5, class_="fill"))
    return shapes


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    ticks: Sequence[tuple[float, str]],
    palette: Palette,
    spoken: str,
) -> Markup:
    """Lines over a share of the width, of values in 0..1 (the axis always shows the whole range).

    Args:
        series: method -> (place in 0..1, value in 0..1), in order.
        ticks: (place, text) below the axis.
        spoken: what the chart says, for those who cannot see it.
    """
    grid = [
        join(
            element("line", x1=0, x2="100%", y1=percent(1 - level), y2=percent(1 - level), class_="rule"),
            element("text", f"{100 * level:.0f}", x=-6, y=percent(1 - level), dy=4, class_="y"),
        )
        for level in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    below = [element("text", text, x=percent(at), y="100%", dy=18, class_="x") for at, text in ticks]
    drawn = [
        element("g", _line(points), class_=f"lit {palette.classes(label)}", data_method=palette.number(label))
        for label, points in series.items()
    ]
    chart = element("svg", grid, below, drawn, class_="lines", height=_HEIGHT, role="img", aria_label=spoken)
    return element("div", chart, class_="axes")


def _line(points: Sequence[tuple[float, float]]) -> list[Markup]:
    placed = [(percent(at), percent(1 - min(max(value, 0.0), 1.0))) for at, value in points]
    drawn = [element("line", x1=x1, y1=y1, x2=x2, y2=y2) for (x1, y1), (x2, y2) in pairwise(placed)]
    return drawn + [element("circle", cx=x, cy=y, r=3.5) for x, y in placed]


@frozen(kw_only=True)
class LogScale:
    """Positive numbers over the width, by their logarithm; the ends are powers of ten."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> LogScale:
        """The narrowest one that shows them all."""
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return cls(low=low, high=max(high, low + 1))

    def place(self, value: float) -> float:
        """Where a value stands, 0..1."""
        return (math.log10(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """The powers of ten, not more than seven of them."""
        powers = range(int(self.low), int(self.high) + 1)
        step = math.ceil(len(powers) / 7)
        return [((power - self.low) / (self.high - self.low), f"{10.0**power:g}") for power in powers[::step]]


def ridges(values: Mapping[str, Sequence[float]], text: Mapping[str, str], palette: Palette) -> Markup:
    """A histogram a method over one logarithmic axis, the median marked; each is as high as its own fullest bin."""
    scale = LogScale.over([value for of_method in values.values() for value in of_method])
    rows = []
    for label, of_method in values.items():
        places = sorted(scale.place(value) for value in of_method)
        middle = percent(places[len(places) // 2])
        hills = element(
            "svg",
            element("path", d=_outline(places), class_="hill"),
            viewBox=f"0 0 {_BINS} 1",
            preserveAspectRatio="none",
            width="100%",
            height=34,
        )
        median_line = element("line", x1=middle, x2=middle, y1=0, y2=36, class_="tick")
        base = element("line", x1=0, x2="100%", y1=34.5, y2=34.5, class_="rule")
        rows.append(
            element(
                "div",
                element("span", palette.swatch(label), foreign(label, 40), class_="who"),
                element(
                    "svg",
                    (base, hills, median_line),
                    class_=f"ridge {palette.classes(label)}",
                    role="img",
                    aria_label=f"{label}: {text[label]}",
                ),
                element("span", text[label], class_="value"),
                class_="row lit",
                data_method=palette.number(label),
            )
        )
    ticks = [element("text", words, x=percent(at), y=12, class_="x") for at, words in scale.ticks()]
    axis = element("svg", ticks, class_="axis", aria_hidden="true")
    return element("div", rows, element("div", element("span", class_="who"), axis, class_="row"), class_="rows")


def _outline(places: Sequence[float]) -> str:
    """The path of a histogram's outline in a box ``_BINS`` wide and 1 high."""
    counts = [0] * _BINS
    for place in places:
        counts[min(int(place * _BINS), _BINS - 1)] += 1
    top = max(counts)
    steps = "".join(f"V{round(1 - count / top, 3):g}H{right}" for right, count in enumerate(counts, 1))
    return f"M0 1{steps}V1Z"
