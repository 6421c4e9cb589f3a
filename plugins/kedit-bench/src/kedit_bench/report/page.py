"""The report of a bench: one HTML file that can be mailed, opened from disk and printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kedit_bench.report.comparable import Comparable, Group, groups_of
from kedit_bench.report.facts import FORCED, FREE, GAP, GAP_EXPLAINED
from kedit_bench.report.failures import error_classes
from kedit_bench.report.markup import Markup, element, foreign, join
from kedit_bench.report.norms import update_sizes
from kedit_bench.report.overview import overview, place_of, tiles
from kedit_bench.report.provenance import manifest, settings, time_spent
from kedit_bench.report.reading import Bench, read_bench
from kedit_bench.report.retention import retention
from kedit_bench.report.scores import cost_bars, score_bars
from kedit_bench.report.shell import page, write_page
from kedit_bench.report.style import Palette
from kedit_bench.report.table import failures_list, parts_table, results_table, source_tables
from kedit_bench.report.worst import cases_shown, worst_cases, worst_section

_FEW = 3  # groups; with more of them the details start closed


def write_report(bench: Mapping[str, Any], path: Path) -> None:
    """Write the report of a bench (the content of its ``bench.json``) to one HTML file.

    Raises InputError when the bench cannot be read, OSError when the file cannot be written.
    """
    write_page(path, report(bench))


def report(bench: Mapping[str, Any]) -> str:
    """The report as text. Raises InputError when the bench cannot be read."""
    return _document(read_bench(bench))


def _document(bench: Bench) -> str:
    groups = groups_of(bench)
    palette = Palette.of(cell.label for cell in bench.cells)
    few = len(groups) <= _FEW
    worst = cases_shown(sum(len(group.tables) for group in groups))
    first_look = overview(groups, palette)
    return page(
        "kedit bench",
        element("a", "Skip to the results", href="#results", class_="skip"),
        element("header", element("h1", "Knowledge editing benchmark"), _when(bench), tiles(bench)),
        _controls(bench, groups, palette),
        element(
            "main",
            element("section", element("h2", "At a glance"), first_look, class_="card") if first_look else None,
            [_group(group, palette, few, worst) for group in groups],
            element("p", "Nothing matches these filters.", class_="nothing", hidden=True),
            element("section", element("h2", "How to read this"), _glossary(groups), class_="card"),
            element("section", element("h2", "What it was made with"), manifest(bench), class_="card"),
            id="results",
        ),
    )


def _when(bench: Bench) -> Markup | None:
    times = [_time(str(bench.manifest[name])) for name in ("started", "finished") if bench.manifest.get(name)]
    return element("p", foreign(" to ".join(times)), class_="when") if times else None


def _time(text: str) -> str:
    """A time as people write it; anything else as it is."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip()


def _controls(bench: Bench, groups: Sequence[Group], palette: Palette) -> Markup:
    """Filters, and the methods with their colours; a click on one dims the others."""
    chosen = {"model": [group.model for group in groups], "dataset": [group.dataset for group in groups]}
    chosen["scenario"] = [group.scenario for group in groups]
    filters = [
        element("label", name.capitalize(), _select(name, list(dict.fromkeys(values))))
        for name, values in chosen.items()
        if len(set(values)) > 1
    ]
    buttons = [
        element(
            "button",
            palette.swatch(label),
            foreign(label, 40),
            type="button",
            class_="legend-entry",
            data_method=palette.number(label),
            aria_pressed="false",
        )
        for label in dict.fromkeys(cell.label for cell in bench.cells)
    ]
    legend = element("div", buttons, class_="methods", role="group", aria_label="Highlight a method")
    return element("nav", element("div", filters, class_="filters") if filters else None, legend, aria_label="Filters")


def _select(name: str, values: Sequence[str]) -> Markup:
    options = [element("option", f"all {name}s", value=""), *(element("option", v, value=v) for v in values)]
    return element("select", options, data_filter=name)


def _group(group: Group, palette: Palette, few: bool, worst: int) -> Markup:
    title = join(
        element("span", foreign(group.model)),
        element("small", foreign(group.dataset), " · ", group.scenario),
    )
    tables = [_table(table, group, palette, few, worst) for table in group.tables]
    split = (
        element(
            "p",
            "These cells were measured in different ways (see the tags), so they stand in tables of their own.",
            class_="note",
        )
        if len(group.tables) > 1
        else None
    )
    made = [time_spent(group.cells, palette), *settings(group, palette)]
    return element(
        "section",
        element("h2", title),
        failures_list(group.failed),
        split,
        tables,
        _fold("Settings, time and warnings", False, made),
        class_="card group",
        id=group.anchor,
        **place_of(group),
    )


def _table(table: Comparable, group: Group, palette: Palette, few: bool, worst: int) -> Markup:
    folds = [
        ("Scores as bars", _bars_note(table), list(score_bars(table, palette))),
        ("Retention", "", list(retention(table, palette))),
        ("Wrong answers", "", _listed(error_classes(table, palette))),
        ("Size of the updates", "", _listed(update_sizes(table, palette))),
        ("Cost", "", list(cost_bars(table, palette))),
    ]
    bad = worst_cases(table, worst)
    note = element("p", "Mean over methods and metrics; up to three probes each. Texts are cut.", class_="note")
    return element(
        "div",
        results_table(table, group, palette),
        list(source_tables(table, palette)),
        [
            _fold(name, few or index < 2, [_grid(figures)], note)
            for index, (name, note, figures) in enumerate(folds)
            if figures
        ],
        _fold("Sub-keys", False, _listed(parts_table(table, palette))),
        _fold(
            "The worst case" if len(bad) == 1 else f"The {len(bad)} worst cases",
            few,
            [note, worst_section(bad, palette)] if bad else [],
        ),
        class_="comparable",
    )


def _bars_note(table: Comparable) -> str:
    headline = {FREE: "free generation"}.get(table.headline, table.headline)
    forced = any(metric.facts.group == FORCED for metric in table.metrics.values()) and table.headline != FORCED
    return f"bar: {headline}" + (", line: teacher-forced, and how much higher that is" if forced else "")


def _fold(name: str, is_open: bool, content: Sequence[object], note: str = "") -> Markup | None:
    """Something that can be opened; None where there is nothing in it."""
    shown = [part for part in content if part is not None]
    if not shown:
        return None
    head = element("summary", element("h3", name), element("span", note, class_="note") if note else None)
    return element("details", head, shown, class_="fold", open=is_open)


def _grid(figures: Sequence[Markup]) -> Markup:
    return element("div", figures, class_="grid")


def _listed(part: Markup | None) -> list[Markup]:
    return [] if part is None else [part]


def _glossary(groups: Sequence[Group]) -> Iterator[Markup]:
    facts = {name: metric.facts for group in groups for table in group.tables for name, metric in table.metrics.items()}
    entries = [(name, fact.explained) for name, fact in facts.items()]
    entries.append((GAP, GAP_EXPLAINED))
    yield element(
        "p",
        "▲ best and ▼ worst of a column, as it is shown; both only among methods on the same model, dataset and "
        "scenario, measured under the same tag. A tag reads mode.context.answers.scenario.edits+way; numbers with "
        "different tags are never averaged or ranked together. A score is a mean over cases.",
    )
    yield element(
        "dl",
        [
            element("div", element("dt", element("code", name)), element("dd", text, data_explains=name))
            for name, text in entries
        ],
        class_="pairs",
    )
