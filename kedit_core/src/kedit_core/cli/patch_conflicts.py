"""``kedit patch conflicts``: where patches meet that are to stand on one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kedit_core.cli.common import emit, json_option, note, progress, say
from kedit_core.cli.patch_files import PATCH_FILE, model_folder

if TYPE_CHECKING:
    from kedit_core.comparing.changes import BaseWeights
    from kedit_core.comparing.conflicting import ConflictReport, PatchPair
    from kedit_core.patches.format import EditPatch


@click.command(short_help="Tell where patches meet: weights, facts.")
@click.argument("files", metavar="PATCH PATCH...", nargs=-1, required=True, type=PATCH_FILE)
@click.option("--base", "model", metavar="MODEL", help="Also hold them against this model's weights (streamed).")
@click.option(
    "--fail-on",
    multiple=True,
    type=click.Choice(("facts", "places")),
    help="Exit with 1 when two contradict one another (facts), or change the same weights or modules (places).",
)
@click.option("--quick", is_flag=True, help="Leave out overlaps of dense changes (minutes for large weights).")
@json_option
@click.pass_context
def conflicts(
    ctx: click.Context,
    files: tuple[Path, ...],
    model: str | None,
    fail_on: tuple[str, ...],
    quick: bool,
    json_to: str | None,
) -> None:
    """Tell where two or more patches meet that are to stand on one model, in this order.

    Compared are prompts and targets as text (not what they mean), the changes of weights both touch (do they add up or
    cancel), modules and routers, and which was made on top of which. Nothing is run: what the model answers with
    them on it, only `kedit evaluate` tells.
    """
    from kedit_core.comparing.conflicting import conflicts as find_conflicts
    from kedit_core.patches import EditPatch

    patches = [EditPatch.load(file) for file in files]
    base = None if model is None else _base(ctx, model, patches)
    short = [file.name for file in files]
    names = short if len(set(short)) == len(files) else [str(file) for file in files]
    report = find_conflicts(patches, base, names=names, quick=quick, progress=progress)
    emit(json_to, report.to_dict, lambda: _show(report))
    contradicting = "facts" in fail_on and bool(report.contradictions)
    meeting = "places" in fail_on and any(pair.share_places for pair in report.pairs)
    if contradicting or meeting:
        ctx.exit(1)


def _base(ctx: click.Context, model: str, patches: list[EditPatch]) -> BaseWeights:
    """Reads the base's weights; BaseMismatchError when one of the patches is for another model."""
    from kedit_core.folders.base import FolderBase
    from kedit_core.stacks.digest import Fit

    base = FolderBase.open(model_folder(ctx, model))
    fit = Fit(base)
    for patch in patches:
        fit.check(patch)
    return base.tensor


def _show(report: ConflictReport) -> None:
    for pair in report.pairs:
        say(pair.verdict)
        _show_more(pair)
    if report.order is not None:
        note(f"note: not in this order: {report.order}")
    for text in report.notes:
        note(f"note: {text}")


def _show_more(pair: PatchPair) -> None:
    """What the verdict only counts."""
    for shared in pair.facts.contradictions[1:]:
        say(f"  {shared.prompt}: {' and '.join(shared.first)}, and {' and '.join(shared.second)}")
    if len(pair.weights) > 1:
        for meeting in pair.weights:
            share = "" if meeting.cosine is None else f" (cosine {round(meeting.cosine, 2) + 0.0:.2f})"
            say(f"  {meeting.place}: {meeting.effect}{share}")
