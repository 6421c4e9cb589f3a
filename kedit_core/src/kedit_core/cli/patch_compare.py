"""``kedit patch compare``: how much patches change each weight, and whether they change it in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kedit_core.cli.common import emit, json_option, note, progress, say, show_table
from kedit_core.cli.outputs import STDOUT, OutputPath, check_file, drawing
from kedit_core.cli.patch_files import PATCH_FILE, model_folder
from kedit_core.errors import BaseMismatchError

if TYPE_CHECKING:
    from torch import Tensor

    from kedit_core.comparing.overlaps import Change, Comparison, Overlap, Pair
    from kedit_core.patches import EditPatch

_EVERYWHERE = "all weights"


@click.command(short_help="Compare what patches do to each weight.")
@click.argument("files", metavar="PATCH PATCH...", nargs=-1, required=True, type=PATCH_FILE)
@click.option("--base", "model", metavar="MODEL", help="Also tell norms relative to this model's weights (streamed).")
@click.option(
    "--plot",
    "picture",
    metavar="FILE",
    type=OutputPath(dir_okay=False, path_type=Path),
    help="Draw it to FILE: png, svg or pdf, as the name ends.",
)
@click.option("--quick", is_flag=True, help="Leave out rank and overlaps of dense changes (minutes for large weights).")
@json_option
@click.pass_context
def compare(
    ctx: click.Context,
    files: tuple[Path, ...],
    model: str | None,
    picture: Path | None,
    quick: bool,
    json_to: str | None,
) -> None:
    """Compare the weight changes of two or more patches.

    For each weight: the norm of each patch's change, its rank, and for each two patches the cosine between their
    changes and the overlap of their column spaces (what is written) and row spaces (what it answers to), from 0
    (orthogonal) to 1 (one within the other). In brackets: what random spaces of these ranks would have.
    """
    from kedit_core.comparing.overlaps import compare as compare_patches
    from kedit_core.patches import EditPatch

    if picture is not None:
        _check_picture(picture)
    patches = [EditPatch.load(file) for file in files]
    base = None if model is None else _base(ctx, model, patches[0], files[0])
    comparison = compare_patches(patches, base, names=_names(files), quick=quick, progress=progress)
    emit(json_to, comparison.to_dict, lambda: _show(comparison))
    if picture is not None:  # last: a picture that fails takes nothing with it
        with drawing(picture):
            comparison.plot(picture)
        if json_to != STDOUT:
            say(f"\nthe picture is in {picture}")


def _base(ctx: click.Context, model: str, patch: EditPatch, file: Path) -> Callable[[str], Tensor]:
    """Reads the weights of the model that the norms are relative to; BaseMismatchError for another architecture."""
    from kedit_core.folders import FolderBase

    folder = model_folder(ctx, model)
    try:
        return FolderBase.open(folder, patch.base.architecture).tensor
    except BaseMismatchError as error:
        raise BaseMismatchError(
            f"--base {model} is another architecture than the {patch.base.architecture} that {file} is for; give the "
            "model it was made for, or leave --base out"
        ) from error


def _check_picture(picture: Path) -> None:
    """Refuse a picture that cannot be drawn before the work is done, not after it."""
    from kedit_core.comparing.plot import check_format

    check_format(picture)
    check_file("--plot", picture)


def _names(files: Sequence[Path]) -> list[str]:
    """The files' names, as given where two are the same."""
    short = [file.name for file in files]
    return short if len(set(short)) == len(files) else [str(file) for file in files]


def _show(comparison: Comparison) -> None:
    for name, patch_id in zip(comparison.names, comparison.ids, strict=True):
        say(f"{name}: patch {patch_id[:12]}")
    say()
    rows = [
        (each.place, *("" if change is None else _change(change) for change in each.changes))
        for each in comparison.places
    ]
    if len(rows) > 1:
        rows.append((_EVERYWHERE, *(f"{norm:.4g}" for norm in comparison.norms)))
    if rows:
        show_table(("norm of the change", *comparison.names), rows)
        _show_pairs(comparison)
    else:
        say("None of them changes a weight, so there is nothing to compare.")
    for left in comparison.left_out:
        note(f"note: not compared: {left.operation} of {comparison.names[left.patch]}, {left.reason}")
    for text in comparison.notes:
        note(f"note: {text}")


def _change(change: Change) -> str:
    relative = "" if change.relative is None else f" ({change.relative:.3g} x the weight)"
    return f"{change.norm:.4g}{relative}" + ("" if change.rank is None else f", rank {change.rank}")


def _show_pairs(comparison: Comparison) -> None:
    rows: list[tuple[str, ...]] = [
        (each.place, *_pair(pair, comparison.names)) for each in comparison.places for pair in each.pairs
    ]
    if len(comparison.places) > 1:
        for i, row in enumerate(comparison.cosines):
            for j in range(i + 1, len(row)):
                both = f"{comparison.names[i]}, {comparison.names[j]}"
                rows.append((_EVERYWHERE, both, _number(row[j]), "", "", "", ""))
    say()
    if rows:
        header = ("", "patches", "cosine", "columns", "weighted", "rows", "weighted")
        show_table(header, rows)
    else:
        say("No two of them change the same weight.")


def _pair(pair: Pair, names: Sequence[str]) -> tuple[str, ...]:
    return (
        f"{names[pair.first]}, {names[pair.second]}",
        _number(pair.cosine),
        *_overlap(pair.columns),
        *_overlap(pair.rows),
    )


def _overlap(overlap: Overlap | None) -> tuple[str, str]:
    if overlap is None:
        return "", ""
    return f"{overlap.value:.3f} ({overlap.by_chance:.3f})", f"{overlap.weighted:.3f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{round(value, 3) + 0.0:.3f}"  # no "-0.000"
