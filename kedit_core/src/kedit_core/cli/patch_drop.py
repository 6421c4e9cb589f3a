"""``kedit patch drop``: a patch without one of its facts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, human_bytes, json_option, note, say
from kedit_core.cli.groups import catalogue
from kedit_core.cli.model_options import keys_option, open_editor, read_patches
from kedit_core.cli.outputs import OutputPath
from kedit_core.cli.patch_files import PATCH_FILE, check_patch_output

if TYPE_CHECKING:
    from kedit_core.editing import EditWarning
    from kedit_core.patches import EditPatch


@click.command(short_help="Take one fact out of a patch of several.")
@click.argument("file", metavar="PATCH", type=PATCH_FILE)
@click.option(
    "--case", "case_id", metavar="ID", required=True, help="Case id of the fact, #3 for the third, or its id."
)
@click.option("--model", metavar="MODEL", help="The base; by default what the patch names.")
@click.option("--dtype", help="Load the model in this dtype (as stored, unless given).")
@click.option("--device", help="Put the model on this device, e.g. cuda:0.")
@click.option("--revision", help="Revision of a model from the Hugging Face Hub.")
@click.option(
    "--patch",
    "parents",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A patch that PATCH was made on top of; several in their order.",
)
@keys_option
@click.option("--stats", type=click.Path(exists=True, path_type=Path), help="Statistics file or folder for the method.")
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), help="Text that statistics are taken from.")
@click.option("--with", "given", multiple=True, metavar="ROLE=PATH", help="What method or patches need beside.")
@click.option("--allow-unverified", is_flag=True, help="Also for weights that cannot be verified (quantised).")
@click.option("-o", "--output", required=True, type=OutputPath(path_type=Path), help="Where the new patch goes.")
@json_option
@click.pass_context
def drop(
    ctx: click.Context,
    file: Path,
    case_id: str,
    model: str | None,
    dtype: str | None,
    device: str | None,
    revision: str | None,
    parents: tuple[Path, ...],
    keys: tuple[Path, ...],
    stats: Path | None,
    corpus: Path | None,
    given: tuple[str, ...],
    allow_unverified: bool,
    output: Path,
    json_to: str | None,
) -> None:
    """Write a patch as if one of the facts in PATCH had never been in it.

    The method that made PATCH computes it, with the settings and the seed in it. A case of several requests goes as a
    whole, and so do requests that are equal: #3 takes all that say the same as the third.
    """
    from kedit_core.editing.dropping import base_name, settings_of
    from kedit_core.editing.facts import requests_named

    check_patch_output(output)
    (patch,), installed = read_patches([file], keys), catalogue(ctx)
    wanted = requests_named(patch, case_id)  # before a model is loaded
    editor = open_editor(
        base_name(patch) if model is None else model,
        patch.method.name,
        hparams=settings_of(patch, installed),
        seed=patch.seed or 0,
        options={key: value for key, value in (("stats", stats), ("corpus", corpus)) if value is not None},
        dtype=dtype,
        device=device,
        revision=patch.base.revision if model is None and revision is None else revision,
        way=None,
        patches=parents,
        keys=keys,
        given=given,
        force=False,
        allow_unverified=allow_unverified,
        catalogue=installed,
    )
    warnings: list[EditWarning] = []
    made = editor.drop(patch, case_id, allow_unverified=allow_unverified, on_warning=warnings.append)
    made.save(output)
    data = _data(patch, made, wanted, output, warnings)
    emit(json_to, lambda: data, lambda: _show(data, made))


def _data(
    patch: EditPatch, made: EditPatch, wanted: list[str], output: Path, warnings: list[EditWarning]
) -> dict[str, Any]:
    from kedit_core.editing.facts import facts_of, request_of

    return {
        "patch": made.id,
        "made_from": patch.id,
        "dropped": [dict(fact) for fact in facts_of(patch) if request_of(fact).id in wanted],
        "requests": len(facts_of(made)),
        "output": str(output),
        "warnings": [
            {"code": each.code, "message": each.message, "number": each.number, "remedy": each.remedy}
            for each in warnings
        ],
    }


def _show(data: dict[str, Any], made: EditPatch) -> None:
    for fact in data["dropped"]:
        say(f"dropped: {fact['prompt']} -> {fact['target_new']}")
    for each in data["warnings"]:
        note(f"warning: {each['message']}; {each['remedy']}")
    count = data["requests"]
    left = f"{count} fact{'s' * (count != 1)} left"
    say(f"patch {made.id[:12]} is in {data['output']} ({human_bytes(made.size)}), {left}")
