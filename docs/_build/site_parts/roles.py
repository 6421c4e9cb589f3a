"""What the docstrings of the API reference are freed from: Sphinx's roles, which Markdown does not know."""

from __future__ import annotations

from typing import Any

import griffe

from site_parts.text import markdown


class Roles(griffe.Extension):
    """Turns ``:class:`Editor``` into plain code, in every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **context: Any) -> None:
        """Called once for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
