"""What the commands of ``kedit patch`` share: patch files and model folders among their arguments."""

from __future__ import annotations

from pathlib import Path

import click

from kedit_core.cli.outputs import check_file, check_replaceable
from kedit_core.cli.root import catalogue

PATCH_FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


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
