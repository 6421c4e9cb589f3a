"""``kedit patch``: what can be done with patch files. Each command has a module of its own."""

from __future__ import annotations

from collections.abc import Mapping

import click

from kedit_core.cli.groups import Builtin, CommandGroup

COMMANDS: Mapping[str, Builtin] = {
    "show": Builtin("kedit_core.cli.patch_show:show", "Tell what a patch says and changes."),
    "verify": Builtin("kedit_core.cli.patch_verify:verify", "Check a patch file, and whether it fits a model."),
    "apply": Builtin("kedit_core.cli.patch_folders:apply", "Write a model folder with a patch in its weights."),
    "revert": Builtin("kedit_core.cli.patch_folders:revert", "Take patches off a model folder."),
    "compare": Builtin("kedit_core.cli.patch_compare:compare", "Compare what patches do to each weight."),
    "conflicts": Builtin("kedit_core.cli.patch_conflicts:conflicts", "Tell where patches meet: weights, facts."),
    "drop": Builtin("kedit_core.cli.patch_drop:drop", "Take one fact out of a patch of several."),
    "diff": Builtin("kedit_core.cli.patch_diff:diff", "Make a patch from two checkpoints."),
    "audit": Builtin("kedit_core.cli.patch_audit:audit", "Tell what was changed in a checkpoint."),
    "export": Builtin("kedit_core.cli.patch_export:export", "Write patches in a format that other programs read."),
}


@click.group(cls=CommandGroup, builtins=COMMANDS, path="patch.")
def patch() -> None:
    """Show, verify, compare, apply and revert patch files."""
