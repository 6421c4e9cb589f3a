"""What the docstrings of the API reference are made readable for: Markdown, and a parser of one name a line."""

from __future__ import annotations

import re
from typing import Any

import griffe

from site_parts.text import markdown

_GROUP = re.compile(r"^[ \t]+\w+(?:, \w+)+: ", re.MULTILINE)


def together(docstring: str) -> str:
    """Names described in one line (``model, tokenizer: ...``) as one name: the parser takes a second for a type."""
    return _GROUP.sub(lambda found: found[0].replace(", ", ",\N{NO-BREAK SPACE}"), docstring)


class Roles(griffe.Extension):
    """Turns ``:class:`Editor``` into plain code and keeps names together, in every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **context: Any) -> None:
        """Called once for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = together(markdown(obj.docstring.value))
