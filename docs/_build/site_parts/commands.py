"""The command line, told by its click commands."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from site_parts.text import code, table

_AS_IT_STANDS = "\b\n"  # click's mark


def command_reference() -> str:
    """Every command of `kedit` with its usage, its text and its options."""
    from kedit_core.cli.root import kedit

    context = click.Context(kedit, info_name="kedit", max_content_width=100)
    return "\n\n".join(_sections(context, level=2))


def _sections(context: click.Context, level: int) -> Iterator[str]:
    command = context.command
    if context.parent is not None:
        yield f"{'#' * level} {context.command_path}"
    yield _markdown(inspect.cleandoc(command.help or ""))
    yield "```text\n" + command.get_usage(context).removeprefix("Usage: ") + "\n```"
    options = [
        [code(record[0]), record[1]]
        for each in command.get_params(context)
        if (record := each.get_help_record(context)) is not None and record[1] and "--help" not in each.opts
    ]
    if options:
        yield table(["option", "meaning"], options)
    if command.epilog:
        yield _markdown(inspect.cleandoc(command.epilog))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                inner = click.Context(found, parent=context, info_name=name, max_content_width=100)
                yield from _sections(inner, level + (context.parent is not None))


def _markdown(text: str) -> str:
    """A help text: paragraphs that click is told not to wrap are lines to type, or tables."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        f"```text\n{each.removeprefix(_AS_IT_STANDS)}\n```" if each.startswith(_AS_IT_STANDS) else each
        for each in paragraphs
    )
