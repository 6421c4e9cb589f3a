"""``kedit stack apply``: a model folder with a whole stack in its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kedit_core.cli.common import emit, json_option, note, progress, say
from kedit_core.cli.groups import catalogue
from kedit_core.cli.model_options import keys_option, roles
from kedit_core.cli.patch_files import FOLDER
from kedit_core.cli.stack_files import STACK_FILE, open_base
from kedit_core.errors import BaseMismatchError, InputError

if TYPE_CHECKING:
    from kedit_core.patches import EditPatch
    from kedit_core.stacks.file import StackFile


@click.command(short_help="Write a model folder with the whole stack in its weights.")
@click.argument("file", metavar="STACK", type=STACK_FILE)
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder to write; the base is never written into.")
@click.option("--merge-attached", is_flag=True, help="Merge attached patches, too: in half precision another edit.")
@click.option("--force", is_flag=True, help="Apply although the weights are not those the patches were made for.")
@click.option("--with", "given", multiple=True, metavar="ROLE=PATH", help="What the patches need beside themselves.")
@keys_option
@click.option("--overwrite", is_flag=True, help="Replace an edited folder that is there already.")
@json_option
@click.pass_context
def apply(
    ctx: click.Context,
    file: Path,
    output: Path,
    merge_attached: bool,
    force: bool,
    given: tuple[str, ...],
    keys: tuple[Path, ...],
    overwrite: bool,
    json_to: str | None,
) -> None:
    """Write STACK's base with all of its patches in the weights to a folder that any program can load.

    The weights are streamed, and the patches put on in one pass: all of them, or nothing is written. Patches that act
    beside the weights (module operations, routers) have no place in a folder and are refused.
    """
    from kedit_core.editing.sources import resolve_model
    from kedit_core.folders import apply_to_folder
    from kedit_core.folders._record import FOLDER as RECORD
    from kedit_core.patches.trust import policy_for
    from kedit_core.plugins import Host
    from kedit_core.stacks.file import StackFile

    resources = roles(given)
    stack = StackFile.load(file)
    patches = stack.read(trust=policy_for(keys))
    if not patches:
        raise InputError(f"{file} holds no patch, so there is nothing to apply; add one with `kedit stack add`")
    if not merge_attached:
        _refuse_attached(stack, patches)
    source = resolve_model(stack.model, Host(catalogue(ctx)), stack.revision)
    if (source.folder / RECORD).is_dir():
        raise InputError(
            f"the stack's base {source.folder} has patches in its weights already; take the original, or put these on "
            "top with `kedit patch apply`"
        )
    if not force:
        _check_weights(ctx, stack, patches)
    change = apply_to_folder(
        source.folder, patches, output, force=force, resources=resources, overwrite=overwrite, progress=progress
    )
    data = {
        "stack": str(file),
        "folder": str(change.folder),
        "patches": list(change.patches),
        "tensors": list(change.tensors),
        "rounded_to": change.rounded_to,
    }

    def show() -> None:
        say(f"Wrote {change.folder}")
        for each in change.patches:
            say(f"  patch {each}")
        say(f"Take them off again: kedit patch revert {output} -o FOLDER")

    emit(json_to, lambda: data, show)


def _refuse_attached(stack: StackFile, patches: tuple[EditPatch, ...]) -> None:
    from kedit_core.patches import LowRankDelta

    for each, patch in zip(stack.patches, patches, strict=True):
        if each.way == "attached" and any(isinstance(operation, LowRankDelta) for operation in patch.operations):
            raise InputError(
                f"patch {each.id[:12]} is attached in this stack, and a folder holds merged weights only; give "
                "--merge-attached to have it merged all the same"
            )


def _check_weights(ctx: click.Context, stack: StackFile, patches: tuple[EditPatch, ...]) -> None:
    """BaseMismatchError unless the stack gives the weights it records; a note for what may be rounding."""
    from kedit_core.stacks.digest import Fit, arithmetic, folder_digest, other_weights, stored_dtype

    base = open_base(ctx, stack)
    fit = Fit(base)
    for patch in patches:
        fit.check(patch)
    if (stored := stored_dtype(base)) != (stack.dtype or stored):
        note(f"note: the stack is for {stack.dtype} and the files store {stored}: the edit on disk is rounded to that")
    if stack.weights_sha256 is None:
        return
    ways = [(patch, each.way) for patch, each in zip(patches, stack.patches, strict=True)]
    problem = other_weights(stack, folder_digest(base, ways, str(stack.dtype), progress), arithmetic())
    if problem is not None and stack.arithmetic == arithmetic():
        raise BaseMismatchError(f"{problem}; nothing was written")
    if problem is not None:
        note(f"note: {problem}")
