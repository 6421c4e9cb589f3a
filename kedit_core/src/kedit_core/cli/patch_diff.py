"""``kedit patch diff``: a patch from two checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, human_bytes, json_option, note, one_line, progress, say, show_table
from kedit_core.cli.groups import catalogue
from kedit_core.cli.outputs import OutputPath
from kedit_core.cli.patch_files import check_patch_output, model_folder

if TYPE_CHECKING:
    from kedit_core.comparing.difference import Difference, PlaceDifference

_TOLERANCE = 1e-3  # that of diffing.py, which needs torch


@click.command(short_help="Make a patch from two checkpoints.")
@click.argument("base", metavar="MODEL")
@click.argument("edited", metavar="EDITED_MODEL")
@click.option("-o", "--output", required=True, type=OutputPath(path_type=Path), help="Where the patch goes.")
@click.option("--rank", type=click.IntRange(min=1), help="Take low-rank deltas up to this rank where they are close.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=_TOLERANCE,
    show_default=True,
    help="How close: |result - EDITED| / |EDITED - BASE|, for each weight.",
)
@click.option("--places", multiple=True, metavar="GLOB", help="Only parameters of these names, such as '*.mlp.*'.")
@click.option("--originals", is_flag=True, help="Of a MODEL that kedit edited, take the weights from before the edits.")
@json_option
@click.pass_context
def diff(
    ctx: click.Context,
    base: str,
    edited: str,
    output: Path,
    rank: int | None,
    tolerance: float,
    places: tuple[str, ...],
    originals: bool,
    json_to: str | None,
) -> None:
    """Write the patch that makes MODEL into EDITED_MODEL, whatever tool edited it; exit code 1 when nothing differs.

    It gives the weights of EDITED_MODEL bit for bit, unless --rank asks for less. Weights are streamed, and read as
    they are.
    """
    from kedit_core.comparing.diff import diff_folders
    from kedit_core.editing.sources import resolve_model
    from kedit_core.plugins import Host

    check_patch_output(output)
    source = resolve_model(base, Host(catalogue(ctx)))
    difference = diff_folders(
        source.folder,
        model_folder(ctx, edited),
        rank=rank,
        tolerance=tolerance,
        places=places,
        originals=originals,
        name=source.name,
        revision=source.revision,
        progress=progress,
    )
    difference.patch.save(output)
    # on a folder that holds patches it would stand on these
    target = None if (source.folder / ".kedit").exists() else base
    emit(json_to, lambda: _result(difference, output), lambda: _show(difference, target, output))


def _result(difference: Difference, output: Path) -> dict[str, Any]:
    return {"file": str(output), **difference.to_dict()}


def _show(difference: Difference, base: str | None, output: Path) -> None:
    rows = [(each.place, _operation(each), human_bytes(each.nbytes), _closeness(each)) for each in difference.places]
    show_table(("parameter", "operation", "size", "gives EDITED_MODEL"), rows)
    say()
    say(f"Wrote {output}: patch {difference.patch.id}")
    if difference.exact:
        say("Every one of these weights comes out bit for bit.")
    else:
        count = sum(not each.exact for each in difference.places)
        note(f"{count} of {len(difference.places)} weights do not come out bit for bit; without --rank, all do.")
    for text in difference.notes:
        note(f"note: {one_line(text)}")
    if base is not None:
        say(f"Put it on: kedit patch apply {base} {output} -o FOLDER")


def _operation(place: PlaceDifference) -> str:
    if place.rank is not None:
        return f"{place.operation}, rank {place.rank}"
    return place.operation if place.axis is None else f"{place.operation}, {place.axis}s"


def _closeness(place: PlaceDifference) -> str:
    if not place.exact:
        return f"but for {place.error:.2g} of the change"
    if place.refused_error is None:
        return "bit for bit"
    return f"bit for bit (low rank would miss {place.refused_error:.2g} of the change)"
