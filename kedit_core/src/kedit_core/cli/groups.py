"""Groups of commands that are found by name and imported when called: the core's own, and those of plugins.

A plugin's entry point ``NAME = "pkg.mod:command"`` in ``kedit.commands`` is ``kedit NAME``; ``GROUP.NAME`` is
``kedit GROUP NAME`` for a group of the core (``patch.from-peft``).
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from kedit_core.errors import DuplicateNameError, UnknownNameError

if TYPE_CHECKING:
    from kedit_core.plugins import Catalogue, Found


@frozen
class Builtin:
    """A command of the core: where it is, and its line in ``--help`` (so that help imports no command)."""

    target: str
    summary: str


class CommandGroup(click.Group):
    """A group with the core's commands and those that plugins add.

    Attributes:
        builtins: the core's commands by name.
        path: what a plugin's entry point begins with: ``"patch."`` for ``kedit patch``, ``""`` for ``kedit`` itself.
    """

    builtins: Mapping[str, Builtin]
    path: str

    def __init__(self, *args: Any, builtins: Mapping[str, Builtin], path: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.builtins, self.path = builtins, path

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, the core's first."""
        return [*self.builtins, *sorted(self._plugged(ctx).keys() - self.builtins.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command.

        Raises:
            PluginError: a plugin's command cannot be imported or is no click command.
            DuplicateNameError: two distributions claim the name.
        """
        from kedit_core.plugins import COMMANDS, load_object

        installed = catalogue(ctx)
        builtin = self.builtins.get(cmd_name)
        found = self._plugged(ctx).get(cmd_name)
        if builtin is not None and found is not None:
            raise DuplicateNameError(
                f"command {self.path + cmd_name!r} is provided by both kedit-core and {found.provider}; uninstall the "
                "plugin, or leave it out of KEDIT_PLUGINS"
            )
        if builtin is not None:
            command: click.Command = load_object(builtin.target)
            return command
        try:
            return _load(found or installed.find(COMMANDS, self.path + cmd_name))
        except UnknownNameError as error:
            if any(entry.name == self.path + cmd_name for entry in installed.left_out):
                ctx.fail(str(error))
            if close := get_close_matches(cmd_name, self.list_commands(ctx), n=1):
                ctx.fail(f"No such command {cmd_name!r}; did you mean {close[0]!r}?")
            ctx.fail(
                f"No such command {cmd_name!r}. Some come with plugins: `kedit plugins` lists what is installed, and "
                "'pip install kedit' brings all of kedit's own"
            )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in ``--help``, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, builtin.summary) for name, builtin in self.builtins.items()])
        plugged = {name: found for name, found in sorted(self._plugged(ctx).items()) if name not in self.builtins}
        if plugged:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, f"from {found.distribution}") for name, found in plugged.items()])

    def _plugged(self, ctx: click.Context) -> dict[str, Found]:
        """Commands of plugins that belong to this group, by the last part of their names."""
        commands = catalogue(ctx).commands()
        if not self.path:
            return {name: found for name, found in commands.items() if "." not in name}
        return {name[len(self.path) :]: found for name, found in commands.items() if name.startswith(self.path)}


def catalogue(ctx: click.Context) -> Catalogue:
    """What is installed; read once per run of the command line."""
    from kedit_core.plugins import Catalogue

    root = ctx.find_root()
    if (known := root.meta.get("kedit.catalogue")) is None:
        known = root.meta["kedit.catalogue"] = Catalogue.installed()
    result: Catalogue = known
    return result


def _load(found: Found) -> click.Command:
    command = found.load()
    if not isinstance(command, click.Command):
        raise found.error(f"is a {type(command).__name__}, not a click command")
    return command
