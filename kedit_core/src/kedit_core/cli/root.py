"""The ``kedit`` command: what the core has, and how errors are told."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click

from kedit_core.cli.common import harmless
from kedit_core.cli.groups import Builtin, CommandGroup
from kedit_core.errors import KeditError

INTERRUPTED = 130  # what shells give a program that was stopped by Ctrl-C


COMMANDS: Mapping[str, Builtin] = {
    "edit": Builtin("kedit_core.cli.edit:edit", "Edit facts in a model and save the patch."),
    "train": Builtin("kedit_core.cli.train:train", "Train the editor that a method's edits need."),
    "generate": Builtin("kedit_core.cli.generate:generate", "Complete a prompt, with patches or without."),
    "evaluate": Builtin("kedit_core.cli.evaluate:evaluate", "Measure what patches change in a model."),
    "patch": Builtin("kedit_core.cli.patch:patch", "Show, verify, compare, apply and revert patch files."),
    "stack": Builtin("kedit_core.cli.stack:stack", "Keep a base and the patches on it as a file (stack.yaml)."),
    "sign": Builtin("kedit_core.cli.sign:sign", "Sign a patch file, or make keys for it."),
    "methods": Builtin("kedit_core.cli.listing:methods", "List the editing methods that are installed."),
    "models": Builtin("kedit_core.cli.listing:models", "List registered models and architectures."),
    "datasets": Builtin("kedit_core.cli.listing:datasets", "List registered datasets, and how each is read."),
    "metrics": Builtin("kedit_core.cli.listing:metrics", "List protocols, and metrics that are measured on request."),
    "plugins": Builtin("kedit_core.cli.listing:plugins", "List what is plugged in, and by whom."),
    "new-plugin": Builtin(
        "kedit_core.cli.new_plugin:new_plugin", "Start a method, metric, adapter or dataset of yours."
    ),
}


class KeditGroup(CommandGroup):
    """The root: errors become one sentence and an exit code."""

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


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"kedit {version('kedit-core')}")
        ctx.exit()


@click.group(
    cls=KeditGroup,
    builtins=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="MODEL is a registered name such as factworld:gpt2, a local folder, or a Hugging Face id; where it is "
    "loaded, also a stack file (stack.yaml).",
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
    click.echo(harmless(f"Error: {sentence}"), err=True)
    for note in getattr(error, "__notes__", ()):
        click.echo(harmless(f"  {note}"), err=True)


def _silence_stdout() -> None:
    """The reader of the pipe has gone: let the interpreter's last flush go nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
