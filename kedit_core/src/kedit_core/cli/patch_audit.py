"""``kedit patch audit``: what was changed in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kedit_core.cli.common import emit, json_option, note, one_line, progress, say, show_table
from kedit_core.cli.patch_files import PATCH_FILE, model_folder

if TYPE_CHECKING:
    from kedit_core.comparing.audit import Audit, TensorAudit


@click.command(short_help="Tell what was changed in a checkpoint.")
@click.argument("base", metavar="MODEL")
@click.argument("edited", metavar="EDITED_MODEL")
@click.option(
    "--patch",
    "files",
    multiple=True,
    type=PATCH_FILE,
    help="Check that EDITED_MODEL is MODEL with exactly this patch; several in their order.",
)
@click.option("--expect-unchanged", is_flag=True, help="Exit code 1 when anything differs.")
@click.option("--quick", is_flag=True, help="Leave out ranks, which take a while on large weights.")
@json_option
@click.pass_context
def audit(
    ctx: click.Context,
    base: str,
    edited: str,
    files: tuple[Path, ...],
    expect_unchanged: bool,
    quick: bool,
    json_to: str | None,
) -> None:
    """Tell in which weights, settings and files EDITED_MODEL differs from MODEL.

    Of a folder that kedit edited: also whether its weights are MODEL with just the patches that its record claims.
    Exit code 1 with --patch when the weights are not exactly MODEL with these, and with --expect-unchanged when
    anything differs.
    """
    from kedit_core.comparing.auditing import audit_folders
    from kedit_core.patches import EditPatch

    patches = [EditPatch.load(file) for file in files]
    found = audit_folders(
        model_folder(ctx, base), model_folder(ctx, edited), patches=patches, quick=quick, progress=progress
    )
    emit(json_to, found.to_dict, lambda: _show(found, bool(files)))
    if (files and not found.as_expected) or (expect_unchanged and not found.unchanged):
        ctx.exit(1)


def _show(found: Audit, given: bool) -> None:
    changed = [each for each in found.tensors if each.norm is not None or each.kind is not None]
    if changed:
        header = ("weight", "change", "elements", "rows", "columns", "rank", "norm", "x the weight", "largest")
        show_table(header, [_row(each) for each in changed])
    for each in found.tensors:
        if each.status != "changed":
            say(f"{each.place}: {each.why}")
    differing = sum(each.status != "same" for each in found.tensors)
    say(f"{differing} of {found.compared} parameters and buffers differ." if differing else "All weights are the same.")
    if found.config_keys:
        say(one_line(f"config.json differs in {', '.join(found.config_keys)}"))
    for file in found.files:
        where = {"differs": "differs", "only_in_base": "is in MODEL only", "only_in_edited": "is in EDITED_MODEL only"}
        say(one_line(f"{file.name} {where[file.how]}" + (f" in {', '.join(file.keys)}" if file.keys else "")))
    if found.unread:
        note(f"note: {len(found.unread)} stored tensors that the model does not read were not compared")
    _show_patches(found, given)


def _show_patches(found: Audit, given: bool) -> None:
    if found.claim is not None:
        if found.claim.problem is not None:
            note(f"Its record of kedit's patches cannot be believed: {found.claim.problem}")
        for patch_id, method in found.claim.patches:
            say(f"Its record claims patch {patch_id} ({method})")
    if found.as_expected is None:
        return
    those = "the patches given" if given else "the patches it claims"
    if found.as_expected:
        say(f"Its weights are MODEL with exactly {those}, bit for bit.")
        return
    for each in found.tensors:
        if each.explained is False:
            note(f"  {each.place} is not as MODEL with {those} has it")
    note(f"Its weights are not exactly MODEL with {those}.")


def _row(each: TensorAudit) -> tuple[str, ...]:
    kind: str = each.kind or ""
    if each.status == "dtype" and each.kind != "rounded to another dtype":
        kind = f"{kind}, and the dtype"
    rank = "" if each.rank is None else f"> {each.rank}" if each.rank_is_bound else str(each.rank)
    return (
        each.place,
        kind,
        "" if each.elements is None else str(each.elements),
        "" if each.rows is None else str(each.rows),
        "" if each.columns is None else str(each.columns),
        rank,
        _number(each.norm),
        _number(each.relative),
        _number(each.largest),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
