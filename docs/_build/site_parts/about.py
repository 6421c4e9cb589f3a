"""What kedit knows of a method without loading it, as a table."""

from __future__ import annotations

from kedit_core.contract import SCENARIOS, MethodInfo
from site_parts.text import code, table

_ROUNDS = {
    "append": "each round is a patch of its own",
    "extend": "each round's patch replaces the one before and holds all of it",
}

_COMMAND_LINE = ("stats", "corpus")  # options of every editing command; others are given to an Editor


def _given(option: str) -> str:
    """How an option of a method is given."""
    if option in _COMMAND_LINE:
        return code(f"--{option} PATH")
    return f"{code(f'options={{{option!r}: ...}}')} of an {code('Editor')}"


def about_table(info: MethodInfo, distribution: str) -> str:
    """Package, scenarios, what patches hold, and what an edit needs."""
    rows = [
        ["package", f"{code(distribution)} (family {code(info.family)})"],
        ["scenarios", ", ".join(code(each) for each in SCENARIOS if each in info.scenarios)],
        ["patches hold", ", ".join(code(each) for each in sorted(info.operations))],
        ["in a sequence", _ROUNDS[info.state]],
        ["needs a subject", "yes" if info.needs_subject else "no"],
        ["needs a trained editor", f"yes: {code(f'kedit train -m {info.name}')}" if info.training else "no"],
    ]
    if info.resources:
        rows.append([f"resources ({code('--with ROLE=PATH')})", ", ".join(code(each) for each in info.resources)])
    if options := [_given(each) for each in info.options if each not in info.resources]:
        rows.append(["options", ", ".join(options)])
    return table(["", ""], rows)
