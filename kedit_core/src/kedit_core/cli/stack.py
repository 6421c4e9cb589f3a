"""``kedit stack``: a base and the patches on it, in order, as a file. Each command has a module of its own."""

from __future__ import annotations

from collections.abc import Mapping

import click

from kedit_core.cli.groups import Builtin, CommandGroup

COMMANDS: Mapping[str, Builtin] = {
    "new": Builtin("kedit_core.cli.stack_change:new", "Write a stack file for a model and patches."),
    "add": Builtin("kedit_core.cli.stack_change:add", "Put one more patch into a stack file."),
    "remove": Builtin("kedit_core.cli.stack_change:remove", "Take patches out of a stack file."),
    "lock": Builtin("kedit_core.cli.stack_change:lock", "Record which weights the stack gives."),
    "show": Builtin("kedit_core.cli.stack_show:show", "Tell what is in a stack file."),
    "verify": Builtin("kedit_core.cli.stack_show:verify", "Check files, base, order and weights of a stack."),
    "apply": Builtin("kedit_core.cli.stack_apply:apply", "Write a model folder with the whole stack in its weights."),
}


@click.group(
    cls=CommandGroup,
    builtins=COMMANDS,
    path="stack.",
    epilog="A stack file is also a MODEL: kedit generate stack.yaml --prompt TEXT",
)
def stack() -> None:
    """Keep a base and the patches on it, in order, as a file (stack.yaml)."""
