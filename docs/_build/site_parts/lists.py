"""Lists as GitHub reads them, written so that Python-Markdown reads them alike.

Python-Markdown wants a blank line before a list and four spaces for what belongs to an item; GitHub wants neither.
"""

from __future__ import annotations

import re

_ITEM = re.compile(r"( *)([-*+]|\d+[.)])( +)(?=\S)")
_FENCE = re.compile(r" *(```+|~~~+)")
_STEP = 4


def respace(markdown: str) -> str:
    """The same page with four spaces a level in lists, and blank lines before them."""
    made: list[str] = []
    offsets: list[int] = []  # where the text of each open item begins
    fence, after_item = "", False
    for line in markdown.splitlines():
        text = line.lstrip(" ")
        indent = len(line) - len(text)
        if not text:
            made.append("")
            after_item = False
            continue
        in_list = bool(offsets)
        if not fence:
            while offsets and indent < offsets[-1]:
                offsets.pop()
        shifted = _STEP * len(offsets) + max(indent - (offsets[-1] if offsets else 0), 0)
        item = None if fence else _ITEM.match(line)
        if item is not None and not in_list and made and made[-1] and item[2][0].isdigit() and item[2][:-1] != "1":
            item = None  # a number at the beginning of a line of running text
        if item is not None and indent - (offsets[-1] if offsets else 0) < _STEP:
            if made and made[-1] and not after_item and not _belongs(made[-1], shifted):
                made.append("")
            level = _STEP * len(offsets)
            offsets.append(len(item[0]))
            made.append(" " * level + item[2] + " " * max(_STEP - len(item[2]), 1) + line[len(item[0]) :])
        else:
            made.append(" " * shifted + text)
        after_item = item is not None
        if marks := _FENCE.match(line):
            if not fence:
                fence = marks[1]
            elif marks[1].startswith(fence) and text.strip("`~") == "":
                fence = ""
    return "\n".join(made) + "\n"


def _belongs(before: str, shifted: int) -> bool:
    """Whether the line before is running text of an item: of the item above, or of the one that this is inside of."""
    return len(before) - len(before.lstrip(" ")) >= max(shifted, _STEP)
