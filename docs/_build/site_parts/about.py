"""What kedit knows of a method without loading it, as a table."""

from __future__ import annotations

from kedit_core.contract import SCENARIOS, MethodInfo
from site_parts.text import code, table

_ROUNDS = {
    "append": "each round is a patch of its own",
    "extend": "each round's patch replaces the one before and holds all of it",
}


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
    if info.options:
        rows.append([f"options ({code('--option NAME=VALUE')})", ", ".join(code(each) for each in info.options)])
    return table(["", ""], rows)
