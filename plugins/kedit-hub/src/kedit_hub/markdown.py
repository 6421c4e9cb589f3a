"""Text of others in Markdown: it shows as it is and can be nothing else, whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LONGEST = 300
_CODE = re.compile(r"[A-Za-z0-9_./:@+-]+( [A-Za-z0-9_./:@+-]+)*")
_PLAIN = frozenset(" ,-;%'\"?!()")  # mean nothing within a line, given that no other sign is left as it is
_POINT = re.compile(r"(?<=\d)\.(?=\d)|\.(?=\s|$)")  # in a number or at the end of a sentence; else it may make a link


def literal(value: str, longest: int = _LONGEST) -> str:
    """``value`` as text of one line: no mark-up, HTML, link, table cell or comment can come of it.

    Letters, digits and harmless punctuation stand for themselves; other characters become numeric entities, and those
    that do not show (line breaks, controls, marks that turn the direction of writing) are spelt out as ``\\n`` or
    ``\\u202e``.
    """
    cut = value if len(value) <= longest else value[: longest - 3]
    points = {found.start() for found in _POINT.finditer(cut)}
    shown = "".join(sign if i in points else _sign(sign) for i, sign in enumerate(cut)).strip()
    return shown if cut == value else f"{shown}..."


def code(value: str, longest: int = _LONGEST) -> str:
    """``value`` as code where it is a plain word (a path, an id), else as :func:`literal`."""
    return f"`{value}`" if len(value) <= longest and _CODE.fullmatch(value) else literal(value, longest)


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The lines of a table; cells are Markdown already."""
    lines = [header, tuple("---" for _ in header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _sign(sign: str) -> str:
    if sign.isalnum() or sign in _PLAIN:
        return sign
    if sign.isprintable():
        return f"&#{ord(sign)};"
    spelt = sign.encode("unicode_escape").decode() if ord(sign) > 255 or ord(sign) < 32 else f"\\x{ord(sign):02x}"
    return "".join(f"&#{ord(each)};" if not each.isalnum() else each for each in spelt)
