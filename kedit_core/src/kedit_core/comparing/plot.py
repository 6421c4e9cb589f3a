"""A comparison as a picture: norms weight by weight, and heat maps of the overlaps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kedit_core.comparing.comparison import Comparison
from kedit_core.errors import InputError
from kedit_core.extras import needed
from kedit_core.files import replacing

_WRITTEN = 12  # patches up to which the cells of a heat map have numbers in them
_LABELLED = 40  # weights up to which each has its label
_SPACES = (("columns", "column spaces (what is written)"), ("rows", "row spaces (what it answers to)"))


def check_format(path: str | os.PathLike[str]) -> str:
    """The format that the ending of ``path`` says; for asking before the work is done.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: it does not write this format.
    """
    ending = Path(path).suffix.removeprefix(".").lower()
    if ending not in (known := _canvas_class().filetypes):
        raise InputError(f"a plot cannot be written to {path}; give a name that ends with one of {', '.join(known)}")
    return ending


def draw(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write the picture; see :meth:`Comparison.plot`."""
    ending = check_format(path)
    figures = needed("matplotlib.figure", "a plot", "kedit-core[plot]")
    if not comparison.places:
        raise InputError("there is nothing to draw: none of the patches changes a weight")
    names = [name.removesuffix(".safetensors") for name in comparison.names]
    side = max(3.5, 0.7 * len(names))
    width = min(24.0, 4 + 0.35 * len(comparison.places) * len(names))
    figure = figures.Figure(figsize=(max(width, 2 * side + 2), 4.5 + side), layout="constrained")
    _canvas_class()(figure)  # so that no window system is asked for, and no global state touched
    grid = figure.add_gridspec(2, 2, height_ratios=(4.5, side))
    _norms(figure.add_subplot(grid[0, :]), comparison, names)
    for number, (space, title) in enumerate(_SPACES):
        _heat(figure, figure.add_subplot(grid[1, number]), comparison.mean_overlaps(space), names, title)
    with replacing(path) as stream:
        figure.savefig(stream, format=ending, dpi=150)


def _canvas_class() -> Any:
    return needed("matplotlib.backends.backend_agg", "a plot", "kedit-core[plot]").FigureCanvasAgg


def _norms(axes: Any, comparison: Comparison, names: Sequence[str]) -> None:
    """Bars: for each weight, one for each patch; relative to the base weight where that is known everywhere."""
    changes = [change for each in comparison.places for change in each.changes if change is not None]
    relative = all(change.relative is not None for change in changes)
    count = len(names)
    for number, name in enumerate(names):
        heights = [
            0.0 if (change := each.changes[number]) is None else (change.relative or 0.0) if relative else change.norm
            for each in comparison.places
        ]
        left = [position + 0.8 * ((number + 0.5) / count - 0.5) for position in range(len(heights))]
        axes.bar(left, heights, width=0.8 / count, label=name)
    labels = _short([each.place for each in comparison.places])
    step = -(-len(labels) // _LABELLED)
    axes.set_xticks(range(0, len(labels), step), labels[::step], rotation=45, ha="right", fontsize=8)
    axes.set_ylabel("norm / norm of the weight" if relative else "norm of the change")
    axes.set_title("how much each weight is changed", fontsize=10)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _heat(figure: Any, axes: Any, values: Sequence[Sequence[float | None]], names: Sequence[str], title: str) -> None:
    numbers = [[float("nan") if value is None else value for value in row] for row in values]
    image = axes.imshow(numbers, vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title(f"overlap of {title}", fontsize=10)
    if len(names) <= _WRITTEN:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                text = "-" if value is None else f"{value:.2f}"
                dark = value is not None and value < 0.6
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    figure.colorbar(image, ax=axes, shrink=0.8)


def _short(places: Sequence[str]) -> list[str]:
    """Places without the words that all of them begin with, and without ``.weight``."""
    words = [place.removesuffix(".weight").split(".") for place in places]
    shared = 0
    while len(words) > 1 and all(len(each) > shared + 1 and each[shared] == words[0][shared] for each in words):
        shared += 1
    return [".".join(each[shared:]) for each in words]
