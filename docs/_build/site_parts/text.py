"""Small pieces of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"``(.+?)``", re.DOTALL)
_CODE_SPAN = re.compile(r"(`[^`]+`)")
_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):`([^`]+)`")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown, their vertical bars are escaped (those in code need not be)."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines)


def code(text: str) -> str:
    """Text as code, whatever backticks it holds."""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def markdown(docstring: str) -> str:
    """A docstring's inline marks as Markdown has them: roles and double backticks become code."""
    named = _ROLE.sub(lambda found: code(found[1].lstrip("~").rpartition("~")[2]), docstring)
    return _CODE.sub(lambda found: code(found[1]), named)


def _cell(text: str) -> str:
    parts = _CODE_SPAN.split(" ".join(text.split()))  # odd ones are code
    return "".join(part if i % 2 else part.replace("|", "\\|") for i, part in enumerate(parts))
