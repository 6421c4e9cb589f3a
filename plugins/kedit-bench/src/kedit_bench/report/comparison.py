"""The page of a comparison: every difference with its interval, drawn about zero."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kedit_bench.report.difference import change_text, interval_text, p_text, value_text
from kedit_bench.report.markup import Markup, element, foreign, join
from kedit_bench.report.shell import page, write_page
from kedit_bench.report.style import percent

if TYPE_CHECKING:
    from kedit_bench.differences import Comparison, Difference, Pair

_LEAST = 0.05  # of a scale for shares, so that a hair's breadth does not fill the page
_FEW = 10  # pairs; below, the interval is rough
_SIGNS = {"better": "▲", "worse": "▼", "higher": "↑", "lower": "↓"}


def write_comparison(found: Comparison, path: Path, *, names: tuple[str, str] = ("A", "B")) -> None:
    """Write a comparison to one HTML file; ``names`` say what A and B are. Raises OSError."""
    write_page(path, comparison(found, names))


def comparison(found: Comparison, names: tuple[str, str] = ("A", "B")) -> str:
    """The page as text."""
    sides = [
        element("li", element("b", letter), " ", foreign(name, 200)) for letter, name in zip("AB", names, strict=True)
    ]
    unmatched = [element("li", foreign(sentence, 600)) for sentence in found.unmatched]
    return page(
        "kedit bench: a comparison",
        element("header", element("h1", "Comparison of two benches"), element("ul", sides, class_="tiles sides")),
        element(
            "main",
            element("ul", unmatched, class_="failures") if unmatched else None,
            element("p", _how(found), class_="note"),
            [_pair(pair) for pair in found.pairs],
            element("p", "No cells could be compared.", class_="nothing") if not found.pairs else None,
        ),
    )


def _how(found: Comparison) -> str:
    return (
        "Each row is B less A, over the cases that both have; shares differ in points. The line is an interval of "
        f"{found.level:.0%} (percentile bootstrap over cases, {found.samples:,} resamples, seed {found.seed}), p is of "
        "a test by flipping signs. A difference is marked where both agree that it is more than chance. "
        "p is not corrected for how many metrics are looked at, and neither says what another order of edits or "
        "another seed would give. Costs that the edits of a round share have no interval."
    )


def _pair(pair: Pair) -> Markup:
    heads = ("Metric", "B − A", "", "Interval", "A", "B", "p", "Pairs")
    scale = _scale(pair.differences)
    table = element(
        "table",
        element("caption", f"{pair.label} on {pair.model}, {pair.dataset}, {pair.scenario}", class_="unseen"),
        element("thead", element("tr", [_head(name) for name in heads])),
        element("tbody", [_row(each, pair, scale) for each in pair.differences]),
        class_="differences",
    )
    refused = [
        element("li", "Not compared (", foreign(reason, 600), "): ", element("code", ", ".join(metrics)))
        for reason, metrics in pair.reasons.items()
    ]
    title = join(
        element("span", foreign(pair.label)),
        element("small", foreign(pair.model), " · ", foreign(pair.dataset), " · ", pair.scenario),
    )
    box = element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Table, scrolls sideways")
    return element(
        "section",
        element("h2", title),
        box if pair.differences else element("p", "Nothing could be compared.", class_="note"),
        element("ul", refused, class_="warnings") if refused else None,
        class_="card",
    )


def _head(name: str) -> Markup:
    if not name:
        return element("th", element("span", "A better or worse", class_="unseen"), scope="col", class_="plot")
    return element("th", name, scope="col", class_="method" if name == "Metric" else None)


def _row(found: Difference, pair: Pair, scale: float) -> Markup:
    verdict = found.verdict
    flag = (
        element("span", _SIGNS[verdict], element("span", f" {verdict}", class_="unseen"), class_="flag")
        if verdict
        else None
    )
    pairs = element("span", f"{found.pairs:,}")
    left_out = found.only_a + found.only_b
    notes = [f"{left_out:,} unpaired"] if left_out else []
    notes += ["few, so rough"] if found.pairs < _FEW else []
    own = scale if found.unit == "share" else max(abs(found.difference), abs(found.low or 0), abs(found.high or 0))
    what = {"better": "best", "worse": "worst"}.get(verdict or "")
    name = (
        element("code", found.metric)
        if found.part is None
        else element("span", foreign(pair.part_called(found)), class_="part")
    )
    return element(
        "tr",
        element("th", name, scope="row", class_="method"),
        element("td", flag, change_text(found.difference, found.unit), class_=f"number {what or ''}".strip()),
        element("td", _plot(found, own or 1.0, what), class_="plot"),
        element("td", interval_text(found), class_="number"),
        element("td", value_text(found.a, found.unit)),
        element("td", value_text(found.b, found.unit)),
        element("td", p_text(found.p), class_="number"),
        element("td", pairs, element("small", ", ".join(notes)) if notes else None, class_="number"),
    )


def _plot(found: Difference, scale: float, what: str | None) -> Markup:
    """A point and its interval about zero, which is in the middle."""

    def place(value: float) -> str:
        return percent(0.5 + 0.48 * max(-1.0, min(1.0, value / scale)))

    shapes = [element("line", x1="50%", x2="50%", y1=0, y2=22, class_="zero")]
    if found.low is not None and found.high is not None:
        shapes.append(element("line", x1=place(found.low), x2=place(found.high), y1=11, y2=11, class_="interval"))
    shapes.append(element("circle", cx=place(found.difference), cy=11, r=4.5))
    return element("svg", shapes, class_=f"forest {what or ''}".strip(), aria_hidden="true")


def _scale(differences: Sequence[Difference]) -> float:
    """One scale for all shares of a pair, so that their lines may be held against each other."""
    ends = [
        abs(end)
        for each in differences
        if each.unit == "share"
        for end in (each.low, each.high, each.difference)
        if end
    ]
    return max([_LEAST, *ends])
