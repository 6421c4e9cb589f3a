"""What the commands of ``kedit patch`` share: patch files and model folders among their arguments."""

from __future__ import annotations

from pathlib import Path

import click

from kedit_core.cli.root import catalogue
from kedit_core.errors import InputError

PATCH_FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


def model_folder(ctx: click.Context, model: str) -> Path:
    """The local folder of MODEL, for commands that stream weights and load no model."""
    from kedit_core.editing.sources import resolve_folder
    from kedit_core.plugins import Host

    return resolve_folder(model, Host(catalogue(ctx)))


def check_patch_output(output: Path) -> None:
    """Refuse a place where no patch file can be written (InputError): before the work is done, not after it."""
    if output.is_dir():
        raise InputError(f"-o {output} is a folder; give the name of a file, such as {output / 'patch.safetensors'}")
    if not output.absolute().parent.is_dir():
        raise InputError(f"-o {output}: the folder {output.absolute().parent} does not exist; make it first")
