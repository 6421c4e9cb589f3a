"""``kedit patch``: look at patch files, hold them against a model, and put them on or take them off model folders.

``compare`` and ``drop`` have modules of their own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, human_bytes, json_option, note, progress, say, show_table
from kedit_core.cli.model_options import roles
from kedit_core.cli.patch_compare import compare
from kedit_core.cli.patch_drop import drop
from kedit_core.cli.patch_files import FOLDER, PATCH_FILE, model_folder

if TYPE_CHECKING:
    from kedit_core.patches.disk import FolderChange, TensorCheck
    from kedit_core.patches.format import EditPatch

_SHOWN = 20
_ID = re.compile(r"[0-9a-f]{8,64}")
_id_option = click.option(
    "--id", "wanted", metavar="ID", help="Refuse the file unless this is its id (or the beginning, 8 digits or more)."
)


@click.group()
def patch() -> None:
    """Show, verify, compare, apply and revert patch files."""


patch.add_command(compare)
patch.add_command(drop)


@patch.command(short_help="Tell what a patch says and changes.")
@click.argument("file", metavar="PATCH", type=PATCH_FILE)
@json_option
def show(file: Path, json_to: str | None) -> None:
    """Tell what a patch says: its facts, what it changes and how much, and what it was made for."""
    from kedit_core.cli.describe import description
    from kedit_core.patches import EditPatch

    data = description(EditPatch.load(file))
    emit(json_to, lambda: data, lambda: _show(data))


@patch.command(short_help="Check a patch file, and whether it fits a model.")
@click.argument("file", metavar="PATCH", type=PATCH_FILE)
@click.option(
    "--base", "model", metavar="MODEL", help="Also hold it against this model's weights (streamed, not loaded)."
)
@_id_option
@json_option
@click.pass_context
def verify(ctx: click.Context, file: Path, model: str | None, wanted: str | None, json_to: str | None) -> None:
    """Check that a patch file is well-formed, and with --base that it fits a model; exit code 1 when it does not.

    That it is the file its author made, only its id tells: give the one you were told with --id.
    """
    from kedit_core.errors import PatchFormatError
    from kedit_core.patches import EditPatch

    _check_wanted(wanted)
    result: dict[str, Any] = {"id": None, "whole": False, "problem": None, "base": None}
    try:
        loaded = EditPatch.load(file)
        result |= {"id": loaded.id, "whole": True}
        result["problem"] = _other_id(loaded, file, wanted)
        if model is not None and result["problem"] is None:
            result["base"] = _against(ctx, loaded, model)
    except PatchFormatError as error:
        result["problem"] = str(error)
    passed = result["problem"] is None and (result["base"] is None or result["base"]["fits"])
    result["passed"] = passed
    emit(json_to, lambda: result, lambda: _show_verdict(result))
    if not passed:
        ctx.exit(1)


@patch.command(short_help="Write a model folder with a patch in its weights.")
@click.argument("base", metavar="MODEL")
@click.argument("file", metavar="PATCH", type=PATCH_FILE)
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder to write; MODEL itself is never written into.")
@_id_option
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
    force: bool,
    given: tuple[str, ...],
    overwrite: bool,
    json_to: str | None,
) -> None:
    """Write MODEL with PATCH in its weights to a folder that any program can load.

    A folder that kedit has edited gets the patch on top of those it has; give the same folder as -o to replace it.
    """
    from kedit_core.errors import KeditError
    from kedit_core.patches import EditPatch
    from kedit_core.patches.disk import apply_to_folder

    _check_wanted(wanted)
    loaded, resources = EditPatch.load(file), roles(given)
    if (problem := _other_id(loaded, file, wanted)) is not None:
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


@patch.command(short_help="Take patches off a model folder.")
@click.argument("folder", metavar="FOLDER", type=FOLDER)
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder to write; may be FOLDER.")
@click.option("--patch", "patch_id", metavar="ID", help="Take off only this one (its id or the beginning of it).")
@click.option("--overwrite", is_flag=True, help="Replace an edited folder that is there already.")
@json_option
def revert(folder: Path, output: Path, patch_id: str | None, overwrite: bool, json_to: str | None) -> None:
    """Take patches off a folder that kedit has edited; without --patch, all of them."""
    from kedit_core.patches.disk import revert_folder

    change = revert_folder(folder, output, patch_id, overwrite=overwrite, progress=progress)
    left = "Patches that were not named are still on it." if change.patches else "It is the original again."
    emit(json_to, lambda: _change(change), lambda: _show_change(change, left))


def _check_wanted(wanted: str | None) -> None:
    """InputError for an --id that is none, or too short to tell two patches apart."""
    from kedit_core.errors import InputError

    if wanted is not None and not _ID.fullmatch(wanted.lower()):
        raise InputError(f"--id {wanted} is no patch's id; give its 64 hexadecimal digits, or at least the first 8")


def _other_id(loaded: EditPatch, file: Path, wanted: str | None) -> str | None:
    """What to say when the file is not the patch that is wanted, else None."""
    if wanted is None or loaded.id.startswith(wanted.lower()):
        return None
    return f"{file} is patch {loaded.id} and not {wanted.lower()}; get the file again from whom you have the id"


def _against(ctx: click.Context, loaded: EditPatch, model: str) -> dict[str, Any]:
    from kedit_core.errors import BaseMismatchError
    from kedit_core.patches.disk import FolderBase

    checks: list[TensorCheck] = []
    problem = None
    try:
        base = FolderBase.open(model_folder(ctx, model), loaded.base.architecture)
        with progress("comparing", total=len(loaded.base.tensors)) as step:
            for check in base.compare(loaded.base):
                checks.append(check)
                step.advance()
    except BaseMismatchError as error:
        problem = str(error)
    return {
        "model": model,
        "fits": problem is None and all(check.problem is None for check in checks),
        "problem": problem,
        "tensors": [{"place": check.place, "dtype": check.dtype, "problem": check.problem} for check in checks],
    }


def _show(data: dict[str, Any]) -> None:
    method, base = data["method"], data["base"]
    rows = [
        ("base", " ".join(filter(None, (base["architecture"], base["name"], base["revision"])))),
        ("method", f"{method['name']} ({method['distribution']} {method['version']})"),
        ("seed", "none" if data["seed"] is None else str(data["seed"])),
        *[("on top of", parent) for parent in data["parents"]],
        *[("needs", " ".join(filter(None, (need["role"], need["name"])))) for need in data["requires"]],
        *_made_with(data["state"]["config"].get("resources")),
    ]
    if data["state"]["bytes"]:
        rows.append(("state", f"{human_bytes(data['state']['bytes'])} of the method's own, never put on a model"))
    rows += [("setting", f"{name} = {value}") for name, value in data["hparams"].items()]
    say(f"patch {data['id']} ({human_bytes(data['bytes'])})\n")
    _show_requests(data["requests"])
    say()
    operations = [
        (each["type"], "\n".join(each["places"]), each["detail"], each["size"], each["norm"])
        for each in map(_operation_cells, data["operations"])
    ]
    show_table(("operation", "place", "", "size", "norm"), operations)
    show_table(("", ""), rows)


def _made_with(resources: Any) -> list[tuple[str, str]]:
    """Files that the edit was computed with (a trained editor), by what their digests begin with."""
    known = resources.items() if isinstance(resources, dict) else ()
    return [("made with", f"{role} {str(digest)[:12]}") for role, digest in known]


def _operation_cells(operation: dict[str, Any]) -> dict[str, Any]:
    detail = operation.get("kind") or (f"rank {operation['rank']}" if "rank" in operation else "")
    norm = operation.get("norm")
    return {
        "type": operation["type"],
        "places": operation.get("places") or [operation.get("place", "the whole model")],
        "detail": detail,
        "size": human_bytes(operation["bytes"]),
        "norm": "" if norm is None else f"{norm:.4g}",
    }


def _show_requests(requests: Any) -> None:
    if isinstance(requests, dict):
        say(f"The {requests['count']} edited facts are kept private by its author.")
        return
    for fact in requests[:_SHOWN]:
        say(f"{fact['prompt']} -> {fact['target_new']}")
    if len(requests) > _SHOWN:
        say(f"... and {len(requests) - _SHOWN} more (see --json)")


def _show_verdict(result: dict[str, Any]) -> None:
    if not result["whole"]:
        note(f"Not a whole patch: {result['problem']}")
        return
    if result["problem"] is not None:
        note(result["problem"])
        return
    say(f"The file is well-formed: patch {result['id']}")
    if (base := result["base"]) is None:
        return
    if base["problem"] is not None:
        note(f"It does not fit {base['model']}: {base['problem']}")
        return
    rows = [(row["place"], row["dtype"] or "", row["problem"] or "as recorded") for row in base["tensors"]]
    if rows:
        show_table(("tensor", "dtype", ""), rows)
    else:
        say("It records no weights that could be compared.")
    if base["fits"]:
        say(f"It fits {base['model']}.")
    else:
        note(f"It does not fit {base['model']}: the weights are not those it was made for.")


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
