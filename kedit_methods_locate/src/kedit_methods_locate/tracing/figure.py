"""The figure of the ROME paper: heat maps of tokens by layers, one for each kind. Needs matplotlib (the extra plot)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kedit_core.errors import InputError
from kedit_core.extras import needed
from kedit_core.files import replacing
from kedit_methods_locate.tracing.many_facts import AverageTrace
from kedit_methods_locate.tracing.record import Table, Trace
from kedit_methods_locate.tracing.settings import severed_kind

SUFFIXES = (".png", ".pdf", ".svg")

_COLOURS: Mapping[str, str] = {"block": "Purples", "mlp": "Greens", "attn": "Reds"}
_TITLES: Mapping[str, str] = {
    "block": "one residual state",
    "mlp": "MLP outputs in {} blocks",
    "attn": "attention outputs in {} blocks",
    severed_kind("mlp"): "one state, MLPs severed",
    severed_kind("attn"): "one state, attention severed",
}


def draw_trace(trace: Trace) -> Any:
    """Figure (matplotlib) of one fact: probability of its answer with each state restored; ``*`` marks the subject.

    Raises MissingExtraError without matplotlib.
    """
    subject = {index for start, end in trace.subjects for index in range(start, end)}
    labels = [f"{token}{'*' * (index in subject)}" for index, token in enumerate(trace.tokens)]
    return _draw(
        trace.scores,
        labels,
        trace.window,
        f"p({trace.answer})",
        f"{trace.prompt} {trace.answer}: clean {trace.high:.2f}, corrupted {trace.low:.2f}",
        trace.low,
    )


def draw_average(average: AverageTrace) -> Any:
    """Figure (matplotlib) of many facts: average indirect effect by the place of a token.

    Raises MissingExtraError without matplotlib.
    """
    rows = [(number, words) for number, place, words in average.rows() if place != "before"]
    tables = {kind: table[[number for number, _ in rows]] for kind, table in average.effects.items()}
    return _draw(
        tables,
        [words for _, words in rows],
        average.window,
        "AIE",
        f"{average.model.get('name') or average.model.get('architecture')}: average indirect effect over "
        f"{average.facts} facts, total effect {average.total_effect:.2f}",
        0.0,
    )


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure in one step; the suffix gives the format. Raises InputError for one that is not known."""
    check_suffix(path)
    with replacing(path) as stream:
        # without a date the same figure gives the same bytes
        dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(path.suffix[1:].lower(), {})
        figure.savefig(stream, format=path.suffix[1:].lower(), metadata=dated)


def check_suffix(path: Path) -> None:
    """Refuse a file name that says no format we draw. Raises InputError."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"a figure is written to {' or '.join(SUFFIXES)}, not to {path.name!r}")


def load() -> Any:
    """The class Figure of matplotlib. Raises MissingExtraError without it."""
    return needed("matplotlib.figure", "A plot", "kedit-methods-locate[plot]").Figure


def _draw(tables: Mapping[str, Table], labels: Sequence[str], window: int, unit: str, title: str, floor: float) -> Any:
    """Panels side by side, tokens from top to bottom."""
    rows, layers = next(iter(tables.values())).shape
    size = (1.2 + 3.4 * len(tables), 1.3 + 0.22 * rows)
    figure = load()(figsize=size, dpi=110, layout="constrained")  # a Figure of its own: pyplot keeps none
    figure.suptitle(title, fontsize=9)
    for number, (kind, table) in enumerate(tables.items()):
        axes = figure.add_subplot(1, len(tables), number + 1)
        image = axes.pcolormesh(table, cmap=_COLOURS.get(kind, "Blues"), vmin=floor)
        axes.invert_yaxis()
        axes.set_yticks([row + 0.5 for row in range(rows)], labels if number == 0 else [""] * rows, fontsize=8)
        step = max(1, layers // 8)
        axes.set_xticks([layer + 0.5 for layer in range(0, layers, step)], range(0, layers, step), fontsize=8)
        axes.set_xlabel("layer" if kind not in ("mlp", "attn") else "layer (centre of the window)", fontsize=8)
        axes.set_title(_TITLES.get(kind, kind).format(window), fontsize=8)
        bar = figure.colorbar(image, ax=axes)
        bar.ax.tick_params(labelsize=7)
        bar.ax.set_title(unit, fontsize=7)
    return figure
