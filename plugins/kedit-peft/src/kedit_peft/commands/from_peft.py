"""``kedit patch from-peft``: a PEFT adapter as a patch. Imports no torch until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kedit_core.cli.common import emit, json_option, note, one_line, say
from kedit_core.cli.groups import catalogue
from kedit_core.cli.outputs import OutputPath
from kedit_core.cli.patch_files import FOLDER, check_patch_output

if TYPE_CHECKING:
    from kedit_core.patches import EditPatch


@click.command("from-peft", short_help="Make a patch from a PEFT LoRA adapter.")
@click.argument("folder", metavar="FOLDER", type=FOLDER)
@click.option("--base", "model", metavar="MODEL", required=True, help="The model that the adapter was trained on.")
@click.option("-o", "--output", required=True, type=OutputPath(path_type=Path), help="Patch file to write.")
@json_option
@click.pass_context
def from_peft(ctx: click.Context, folder: Path, model: str, output: Path, json_to: str | None) -> None:
    """Write the patch that does to MODEL what merging the LoRA adapter in FOLDER does.

    Only adapter_config.json and adapter_model.safetensors are read. MODEL is not loaded: the weights that the adapter
    changes are hashed one at a time, so that the patch knows its base.
    """
    check_patch_output(output)
    from kedit_core.cli.describe import description
    from kedit_core.editing.sources import resolve_model
    from kedit_core.plugins import Host
    from kedit_peft.folder import PeftFolder
    from kedit_peft.reading import read_peft

    expected = PeftFolder.open(folder).settings.base_name
    source = resolve_model(model, Host(catalogue(ctx)))
    patch = read_peft(folder, source.folder, name=source.name, revision=source.revision)
    patch.save(output)
    emit(json_to, lambda: description(patch), lambda: _show(output, patch))
    if expected is not None and source.name is not None and expected != source.name:
        note(f"note: the adapter says that it is for {one_line(expected)}, and the patch was made for {source.name}")


def _show(output: Path, patch: EditPatch) -> None:
    count = len(patch.operations)
    say(f"Wrote {output}: patch {patch.id}")
    say(f"  {count} low-rank change{'s' * (count != 1)} of {patch.base.architecture}")
