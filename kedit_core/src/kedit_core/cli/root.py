"""The ``kedit`` group: commands are found by name and imported when called, and errors become one sentence."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

import click
from attrs import frozen

from kedit_core.errors import DuplicateNameError, KeditError, UnknownNameError

if TYPE_CHECKING:
    from kedit_core.plugins import Catalogue, Found

INTERRUPTED = 130  # what shells give a program that was stopped by Ctrl-C


@frozen
class Builtin:
    """A command of the core: where it is, and its line in ``kedit --help`` (so that help imports no command)."""

    target: str
    summary: str


COMMANDS: Mapping[str, Builtin] = {
    "edit": Builtin("kedit_core.cli.edit:edit", "Edit facts in a model and save the patch."),
    "train": Builtin("kedit_core.cli.train:train", "Train the editor that a method's edits need."),
    "generate": Builtin("kedit_core.cli.generate:generate", "Complete a prompt, with patches or without."),
    "evaluate": Builtin("kedit_core.cli.evaluate:evaluate", "Measure what patches change in a model."),
    "patch": Builtin("kedit_core.cli.patch:patch", "Show, verify, compare, apply and revert patch files."),
    "methods": Builtin("kedit_core.cli.listing:methods", "List the editing methods that are installed."),
    "models": Builtin("kedit_core.cli.listing:models", "List registered models and architectures."),
    "datasets": Builtin("kedit_core.cli.listing:datasets", "List registered datasets, and how each is read."),
    "metrics": Builtin("kedit_core.cli.listing:metrics", "List protocols, and metrics that are measured on request."),
    "plugins": Builtin("kedit_core.cli.listing:plugins", "List what is plugged in, and by whom."),
}


class KeditGroup(click.Group):
    """A group whose commands come from :data:`COMMANDS` and the ``kedit.commands`` entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, the core's first."""
        return [*COMMANDS, *sorted(self._plugged(ctx).keys() - COMMANDS.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command.

        Raises:
            PluginError: a plugin's command cannot be imported or is no click command.
            DuplicateNameError: two distributions claim the name.
        """
        from kedit_core.plugins import COMMANDS as GROUP
        from kedit_core.plugins import load_object

        plugged = catalogue(ctx)
        builtin = COMMANDS.get(cmd_name)
        found = plugged.commands().get(cmd_name)
        if builtin is not None and found is not None:
            raise DuplicateNameError(
                f"command {cmd_name!r} is provided by both kedit-core and {found.provider}; uninstall the plugin, or "
                "leave it out of KEDIT_PLUGINS"
            )
        if builtin is not None:
            command: click.Command = load_object(builtin.target)
            return command
        try:
            return _load(found or plugged.find(GROUP, cmd_name))
        except UnknownNameError as error:
            if any(entry.name == cmd_name for entry in plugged.left_out):
                ctx.fail(str(error))
            if close := get_close_matches(cmd_name, self.list_commands(ctx), n=1):
                ctx.fail(f"No such command {cmd_name!r}; did you mean {close[0]!r}?")
            return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in ``--help``, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, builtin.summary) for name, builtin in COMMANDS.items()])
        plugged = {name: found for name, found in sorted(self._plugged(ctx).items()) if name not in COMMANDS}
        if plugged:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, f"from {found.distribution}") for name, found in plugged.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run, print any error as one sentence on stderr, and exit with its code."""
        words = list(sys.argv[1:] if args is None else args)
        debug = _take_debug(words)
        try:
            code = super().main(words, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except BaseException as error:
            code = _report(error, debug)
        sys.exit(code if isinstance(code, int) else 0)

    def _plugged(self, ctx: click.Context) -> Mapping[str, Found]:
        commands: Mapping[str, Found] = catalogue(ctx).commands()
        return commands


def catalogue(ctx: click.Context) -> Catalogue:
    """What is installed; read once per run of the command line."""
    from kedit_core.plugins import Catalogue

    root = ctx.find_root()
    if (known := root.meta.get("kedit.catalogue")) is None:
        known = root.meta["kedit.catalogue"] = Catalogue.installed()
    result: Catalogue = known
    return result


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"kedit {version('kedit-core')}")
        ctx.exit()


@click.group(
    cls=KeditGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="MODEL is a registered name such as factworld:gpt2, a local folder, or a Hugging Face id.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def kedit() -> None:
    """Edit what a language model knows, and hand the edit on as a small reversible patch."""


def _take_debug(words: list[str]) -> bool:
    """Remove ``--debug`` wherever it stands (before a ``--``), so that it may also follow the command."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    found = len(kept) < end
    words[:end] = kept
    return found


def _load(found: Found) -> click.Command:
    command = found.load()
    if not isinstance(command, click.Command):
        raise found.error(f"is a {type(command).__name__}, not a click command")
    return command


def _report(error: BaseException, debug: bool) -> int:
    """Say what went wrong, and give the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        _silence_stdout()
        return 1
    if debug:
        traceback.print_exception(error)
    if isinstance(error, click.Abort | KeyboardInterrupt | EOFError):
        interrupted = isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)
        click.echo("Stopped; nothing was left half done." if interrupted else "Aborted.", err=True)
        return INTERRUPTED if interrupted else 1
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, KeditError):
        _say(str(error), error)
        return error.exit_code
    hint = "" if debug else "; --debug shows where"
    if isinstance(error, OSError) and error.strerror:
        name = f" ({error.filename})" if error.filename else ""
        _say(f"{error.strerror}{name}{hint}", error)
    else:
        _say(f"kedit came upon an error of its own, {type(error).__name__}: {error}{hint}", error)
    return 1


def _say(sentence: str, error: BaseException) -> None:
    click.echo(f"Error: {sentence}", err=True)
    for note in getattr(error, "__notes__", ()):
        click.echo(f"  {note}", err=True)


def _silence_stdout() -> None:
    """The reader of the pipe has gone: let the interpreter's last flush go nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
