"""What the commands of ``kedit patch`` share: patch files and model folders among their arguments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kedit_core.cli.groups import catalogue
from kedit_core.cli.outputs import check_file, check_replaceable

if TYPE_CHECKING:
    from kedit_core.patches.format import EditPatch

PATCH_FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

id_option = click.option(
    "--id", "wanted", metavar="ID", help="Refuse the file unless this is its id (or the beginning, 8 digits or more)."
)
_ID = re.compile(r"[0-9a-f]{8,64}")


def model_folder(ctx: click.Context, model: str) -> Path:
    """The local folder of MODEL, for commands that stream weights and load no model."""
    from kedit_core.editing.sources import resolve_folder
    from kedit_core.plugins import Host

    return resolve_folder(model, Host(catalogue(ctx)))


def check_patch_output(output: Path) -> None:
    """Refuse a place where no patch file can be written, or a file that is no patch and would be replaced by one.

    Raises InputError: before the work is done, not after it.
    """
    from kedit_core.patches.container import KEY

    check_file("-o", output, "patch.safetensors")
    check_replaceable("-o", output, KEY, "patch")


def check_wanted(wanted: str | None) -> None:
    """InputError for an --id that is none, or too short to tell two patches apart."""
    from kedit_core.errors import InputError

    if wanted is not None and not _ID.fullmatch(wanted.lower()):
        raise InputError(f"--id {wanted} is no patch's id; give its 64 hexadecimal digits, or at least the first 8")


def other_id(loaded: EditPatch, file: Path, wanted: str | None) -> str | None:
    """What to say when the file is not the patch that is wanted, else None."""
    if wanted is None or loaded.id.startswith(wanted.lower()):
        return None
    return f"{file} is patch {loaded.id} and not {wanted.lower()}; get the file again from whom you have the id"
