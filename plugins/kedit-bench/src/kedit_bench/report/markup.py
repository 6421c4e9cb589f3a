"""HTML built from parts, so that text from prompts and models can never become markup."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

_VOID = frozenset({"meta", "link", "br", "hr", "input", "col"})
_SHAPES = frozenset({"rect", "line", "circle", "path", "use"})
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


class Markup(str):
    """Text that is HTML already; every other string is escaped when it is put into an element."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """A value as HTML text: ``< > & " '`` as entities, control characters as pictures, half surrogates replaced."""
    if isinstance(value, Markup):
        return value
    plain = str(value).translate(_CONTROLS).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return Markup(html.escape(plain, quote=True))


def join(*children: Any) -> Markup:
    """Children one after another: markup as it is, None left out, lists opened, the rest escaped."""
    return Markup("".join(_flat(children)))


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """``element("td", 3, class_="number", data_v=3)`` -> ``<td class="number" data-v="3">3</td>``.

    A trailing underscore of an attribute's name is dropped, others become hyphens. None and False leave an attribute
    out, True writes its name alone.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    if name in _SHAPES and not children:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def foreign(value: object, longest: int | None = None) -> Markup:
    """Text that somebody else wrote: cut at ``longest`` letters, and kept from turning the direction of what is around.

    The rest of a text that is cut is counted, not dropped in silence.
    """
    whole = str(value)
    if longest is None or len(whole) <= longest:
        return element("bdi", whole)
    return join(
        element("bdi", whole[:longest]), element("span", f"… +{len(whole) - longest:,} characters", class_="cut")
    )


def _flat(children: Iterable[Any]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, str) or not isinstance(child, Iterable):
            yield escape(child)
        else:
            yield from _flat(child)


def _attribute(key: str, value: Any) -> str:
    name = key.removesuffix("_").replace("_", "-")
    if value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(value)}"'
