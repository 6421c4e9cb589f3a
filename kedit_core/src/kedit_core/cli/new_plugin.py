"""``kedit new-plugin``: a distribution of one's own, ready to be installed, tested and published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kedit_core.cli.common import emit, json_option, say
from kedit_core.cli.groups import catalogue
from kedit_core.cli.new_plugin_files import KINDS, LICENSES

if TYPE_CHECKING:
    from kedit_core.cli.plugin_names import PluginNames
    from kedit_core.plugins import Catalogue

_TRY = {
    "method": "kedit edit MODEL --method {name} --prompt ... --target ...",
    "adapter": "kedit models",
    "metric": "kedit edit MODEL ... --metric {name}",
    "dataset": "kedit edit MODEL ... --requests {name}",
}


@click.command("new-plugin", short_help="Start a plugin: a method, adapter, metric or dataset.")
@click.argument("name", metavar="NAME")
@click.option(
    "--kind", type=click.Choice(list(KINDS)), default="method", show_default=True, help="What it is to provide."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder to make; by default one called as the plugin, in the current one.",
)
@click.option("--author", metavar="NAME", help="'Name' or 'Name <address>', for its metadata and its licence.")
@click.option("--license", "license_", type=click.Choice(LICENSES), default=LICENSES[0], show_default=True)
@json_option
@click.pass_context
def new_plugin(
    ctx: click.Context,
    name: str,
    kind: str,
    output: Path | None,
    author: str | None,
    license_: str,
    json_to: str | None,
) -> None:
    """Make a folder with a distribution that works as it is: code, tests, README, CI.

    NAME is what pip will install: my-editor, or kedit-methods-mine, whose method is then called mine.
    """
    from kedit_core.cli.new_plugin_files import plugin_files, write_plugin
    from kedit_core.cli.outputs import check_folder
    from kedit_core.cli.plugin_names import plugin_names

    names = plugin_names(name)
    folder = output or Path(names.distribution)
    if kind == "method":
        _refuse_taken(catalogue(ctx), names)
    contents = plugin_files(kind, names, author=author, license=license_)
    check_folder("-o", folder, folder.absolute().parent)
    write_plugin(folder, contents)
    emit(
        json_to,
        lambda: {
            "folder": str(folder),
            "kind": kind,
            "distribution": names.distribution,
            "package": names.package,
            "name": names.name,
            "files": [path.as_posix() for path in contents],
        },
        lambda: _show(folder, kind, names, list(contents)),
    )


def _refuse_taken(installed: Catalogue, names: PluginNames) -> None:
    from kedit_core.errors import InputError
    from kedit_core.plugins import METHODS

    for found in installed.entries(METHODS):
        if found.name == names.name:
            raise InputError(
                f"method {names.name!r} is provided by {found.provider} already, and two of one name cannot be used; "
                "take another NAME"
            )


def _show(folder: Path, kind: str, names: PluginNames, files: list[Path]) -> None:
    say(f"Wrote {folder}: the {kind} {names.name}, a distribution called {names.distribution}")
    for path in files:
        say(f"  {path.as_posix()}")
    say("\nGo on with")
    say(f"  pip install -e '{folder}[dev]'")
    say(f"  pytest {folder}")
    say(f"  {_TRY[kind].format(name=names.name)}")
    say("README.md there says where to begin, and how to publish it.")
