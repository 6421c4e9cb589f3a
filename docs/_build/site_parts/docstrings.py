"""What a settings class says of its fields: the `Attributes:` of its docstring and of those it inherits."""

from __future__ import annotations

import inspect
import re

_ENTRY = re.compile(r"([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): (.*)")
_WITHIN = re.compile(r"(?<=\.) ([a-z_]\w*): ")  # "iterations: ... at most. batch_size: ..." in one line
_HEADING = "Attributes:"


def summary(cls: type) -> str:
    """What stands before the attributes, in one line of text."""
    text, _, _ = (inspect.cleandoc(cls.__doc__ or "")).partition(f"\n{_HEADING}")
    return " ".join(text.split())


def descriptions(cls: type) -> dict[str, str]:
    """Field -> what is said of it, those of the nearest class first; fields nobody describes are left out."""
    found: dict[str, str] = {}
    for each in cls.__mro__:
        if each.__doc__ and "__attrs_attrs__" in vars(each):
            for name, meaning in _attributes(inspect.cleandoc(each.__doc__)).items():
                found.setdefault(name, meaning)
    return found


def _attributes(docstring: str) -> dict[str, str]:
    _, heading, section = docstring.partition(f"\n{_HEADING}\n")
    if not heading:
        return {}
    entries: list[list[str]] = []
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break  # the next section
        starts = line.startswith("    ") and not line.startswith("     ")
        if starts and _ENTRY.fullmatch(line.strip()):
            entries.append([line.strip()])
        elif entries and line.strip():
            entries[-1].append(line.strip())
    found: dict[str, str] = {}
    for entry in entries:
        for one in _apart(" ".join(entry)):
            match = _ENTRY.fullmatch(one)
            if match:
                found |= dict.fromkeys(match[1].split(", "), match[2])
    return found


def _apart(entry: str) -> list[str]:
    """An entry that describes two fields one after the other, as two."""
    cut = _WITHIN.search(entry)
    return [entry] if cut is None else [entry[: cut.start()], *_apart(entry[cut.start() + 1 :])]
