"""``kedit patch verify``: whether a file is a patch, the one that is wanted, signed by whom, and fits a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, json_option, note, progress, say, show_table
from kedit_core.cli.patch_files import PATCH_FILE, check_wanted, id_option, model_folder, other_id

if TYPE_CHECKING:
    from kedit_core.folders import TensorCheck
    from kedit_core.patches.format import EditPatch


@click.command(short_help="Check a patch file, and whether it fits a model.")
@click.argument("file", metavar="PATCH", type=PATCH_FILE)
@click.option(
    "--base", "model", metavar="MODEL", help="Also hold it against this model's weights (streamed, not loaded)."
)
@id_option
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="PUBLIC.pem",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also check that one of these keys signed it; may be given several times.",
)
@click.option(
    "--signature",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The signature's file; PATCH.sig by default.",
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    file: Path,
    model: str | None,
    wanted: str | None,
    keys: tuple[Path, ...],
    signature: Path | None,
    json_to: str | None,
) -> None:
    """Check that a patch file is well-formed, with --key who signed it, with --base that it fits a model.

    Exit code 1 when it is not so. That it is the file its author made, only a signature (--key) or its id tells: give
    the one you were told with --id.
    """
    from kedit_core.errors import InputError, PatchFormatError, UntrustedPatchError
    from kedit_core.patches import EditPatch
    from kedit_core.patches.signing import check
    from kedit_core.patches.trust import from_environment

    check_wanted(wanted)
    trusted = keys or tuple(getattr(from_environment(), "keys", ()))
    if signature is not None and not trusted:
        raise InputError("--signature can only be checked with a --key; give the public key of the one who signed")
    result: dict[str, Any] = {"id": None, "whole": False, "signed_with": None, "problem": None, "base": None}
    try:
        if trusted:
            signed = check(file, trusted, signature)
            loaded, result["signed_with"] = signed.patch, signed.key.name
        else:
            loaded = EditPatch.load(file)
        result |= {"id": loaded.id, "whole": True}
        result["problem"] = other_id(loaded, file, wanted)
        if model is not None and result["problem"] is None:
            result["base"] = _against(ctx, loaded, model)
    except (PatchFormatError, UntrustedPatchError) as error:
        result["problem"] = str(error)
        result["whole"] = None if isinstance(error, UntrustedPatchError) else False  # None: not looked at
    passed = result["problem"] is None and (result["base"] is None or result["base"]["fits"])
    result["passed"] = passed
    emit(json_to, lambda: result, lambda: _show_verdict(result))
    if not passed:
        ctx.exit(1)


def _against(ctx: click.Context, loaded: EditPatch, model: str) -> dict[str, Any]:
    from kedit_core.errors import BaseMismatchError
    from kedit_core.folders import FolderBase

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


def _show_verdict(result: dict[str, Any]) -> None:
    if result["whole"] is False:
        note(f"Not a whole patch: {result['problem']}")
        return
    if result["problem"] is not None:
        note(result["problem"])
        return
    say(f"The file is well-formed: patch {result['id']}")
    if result["signed_with"] is not None:
        say(f"It is signed with {result['signed_with']}")
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
