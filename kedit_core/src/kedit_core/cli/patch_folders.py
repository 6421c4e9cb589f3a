"""``kedit patch apply`` and ``revert``: patches put on model folders, and taken off."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, json_option, note, progress, say
from kedit_core.cli.model_options import keys_option, read_patches, roles
from kedit_core.cli.patch_files import FOLDER, PATCH_FILE, check_wanted, id_option, model_folder, other_id

if TYPE_CHECKING:
    from kedit_core.folders import FolderChange


@click.command(short_help="Write a model folder with a patch in its weights.")
@click.argument("base", metavar="MODEL")
@click.argument("file", metavar="PATCH", type=PATCH_FILE)
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder to write; MODEL itself is never written into.")
@id_option
@keys_option
@click.option("--force", is_flag=True, help="Apply although the weights are not those it was made for.")
@click.option("--with", "given", multiple=True, metavar="ROLE=PATH", help="What the patch needs beside itself.")
@click.option("--overwrite", is_flag=True, help="Replace an edited folder that is there already.")
@json_option
@click.pass_context
def apply(
    ctx: click.Context,
    base: str,
    file: Path,
    output: Path,
    wanted: str | None,
    keys: tuple[Path, ...],
    force: bool,
    given: tuple[str, ...],
    overwrite: bool,
    json_to: str | None,
) -> None:
    """Write MODEL with PATCH in its weights to a folder that any program can load.

    A folder that kedit has edited gets the patch on top of those it has; give the same folder as -o to replace it.
    """
    from kedit_core.errors import KeditError
    from kedit_core.folders import apply_to_folder

    check_wanted(wanted)
    (loaded,), resources = read_patches([file], keys), roles(given)
    if (problem := other_id(loaded, file, wanted)) is not None:
        raise KeditError(problem)
    change = apply_to_folder(
        model_folder(ctx, base),
        loaded,
        output,
        force=force,
        resources=resources,
        overwrite=overwrite,
        progress=progress,
    )
    emit(
        json_to,
        lambda: _change(change),
        lambda: _show_change(change, f"Take it off again: kedit patch revert {output} -o FOLDER"),
    )


@click.command(short_help="Take patches off a model folder.")
@click.argument("folder", metavar="FOLDER", type=FOLDER)
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder to write; may be FOLDER.")
@click.option("--patch", "patch_id", metavar="ID", help="Take off only this one (its id or the beginning of it).")
@click.option("--overwrite", is_flag=True, help="Replace an edited folder that is there already.")
@json_option
def revert(folder: Path, output: Path, patch_id: str | None, overwrite: bool, json_to: str | None) -> None:
    """Take patches off a folder that kedit has edited; without --patch, all of them."""
    from kedit_core.folders import revert_folder

    change = revert_folder(folder, output, patch_id, overwrite=overwrite, progress=progress)
    left = "Patches that were not named are still on it." if change.patches else "It is the original again."
    emit(json_to, lambda: _change(change), lambda: _show_change(change, left))


def _change(change: FolderChange) -> dict[str, Any]:
    return {
        "folder": str(change.folder),
        "patches": list(change.patches),
        "tensors": list(change.tensors),
        "orphans": list(change.orphans),
        "rounded_to": change.rounded_to,
    }


def _show_change(change: FolderChange, hint: str) -> None:
    say(f"Wrote {change.folder}")
    for each in change.patches:
        say(f"  patch {each}")
    if change.patches:
        say(f"  {len(change.tensors)} stored tensor{'s' * (len(change.tensors) != 1)} changed")
    if change.rounded_to is not None:
        note(
            f"The files store {change.rounded_to} and the model is loaded in another dtype: the edit on disk is "
            f"rounded to {change.rounded_to}, unlike the edit of the loaded model."
        )
    for each in change.orphans:
        note(
            f"Patch {each[:12]} was made on top of a patch that is no longer there; check that it still does its work."
        )
    say(hint)
