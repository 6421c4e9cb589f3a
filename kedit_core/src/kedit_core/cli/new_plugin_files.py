"""The files of a new plugin, filled in from the templates in ``kedit_core/templates/plugin``.

A template's name is its file's with ``.in`` behind it; ``PACKAGE`` stands for the package, ``dot_`` for a leading dot.
In it ``@@{word}`` stands for a word below; nothing else is special.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from datetime import date
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from attrs import frozen

from kedit_core import __version__
from kedit_core.cli.plugin_names import PluginNames
from kedit_core.errors import InputError

LICENSES = ("Apache-2.0", "MIT", "BSD-3-Clause")


@frozen(kw_only=True)
class Kind:
    """What differs in the pyproject.toml of one kind of plugin."""

    description: str
    group: str = "kedit.plugins"
    entry: str
    dependencies: tuple[str, ...] = ("attrs>=25",)
    data: tuple[str, ...] = ("py.typed",)


KINDS: Mapping[str, Kind] = {
    "method": Kind(
        description="The editing method {name} for kedit",
        group="kedit.methods",
        entry="info:INFO",
        dependencies=("attrs>=25", "torch>=2.6"),
        data=("py.typed", "presets/*.yaml"),
    ),
    "adapter": Kind(description="Adapters for kedit: where things are in more architectures", entry="plugin:Adapters"),
    "metric": Kind(description="The metric {name} for kedit", entry="plugin:{cls}Metric"),
    "dataset": Kind(
        description="The dataset {name} for kedit", entry="plugin:{cls}Dataset", data=("py.typed", "data/*.jsonl")
    ),
}


class _Filled(Template):
    delimiter = "@@"


def plugin_files(
    kind: str, names: PluginNames, *, author: str | None = None, license: str = LICENSES[0]
) -> dict[Path, str]:
    """Path in the new folder -> text, of a whole plugin.

    Args:
        kind: one of :data:`KINDS`.
        names: what things are called.
        author: ``"Name"`` or ``"Name <address>"``; goes to pyproject.toml and, where it has a place, the licence.
        license: one of :data:`LICENSES`.

    Raises:
        InputError: an author that is neither.
    """
    words = _words(KINDS[kind], names, author, license)
    root = files("kedit_core").joinpath("templates", "plugin")
    found: dict[Path, str] = {}
    for folder in (root / "common", root / kind):
        for path, template in _templates(folder, Path()):
            found[_named(path, names)] = _Filled(template.read_text("utf-8")).substitute(words)
    licence = root / "licenses" / f"{license}.in"
    found[Path("LICENSE")] = _Filled(licence.read_text("utf-8")).substitute(words)
    return dict(sorted(found.items()))


def write_plugin(folder: Path, contents: Mapping[Path, str]) -> None:
    """Write a new folder, whole or not at all.

    Raises:
        InputError: the folder is there already.
        OSError: it cannot be written.
    """
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder} is there already and is left as it is; give another folder with -o")
    beside = Path(tempfile.mkdtemp(prefix=".kedit-", dir=folder.parent))
    try:
        whole = beside / "plugin"
        for path, text in contents.items():
            target = whole / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="\n")
        whole.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def core_range(version: str = __version__) -> str:
    """The versions of kedit-core that a plugin made now works with: those with the same first two numbers, from 1.0 on
    with the same first."""
    major, minor = (int(number) for number in version.split(".")[:2])
    after = f"0.{minor + 1}" if major == 0 else str(major + 1)
    return f">={major}.{minor},<{after}"


def _words(kind: Kind, names: PluginNames, author: str | None, license: str) -> dict[str, str]:
    holder, address = _author(author)
    fields = {"name": holder, "email": address} if author else {}
    written = ", ".join(f"{key} = {_toml(value)}" for key, value in fields.items() if value)
    return {
        "distribution": names.distribution,
        "package": names.package,
        "name": names.name,
        "class": names.cls,
        "underline": "=" * len(names.distribution),
        "description": kind.description.format(name=names.name),
        "group": kind.group,
        "entry": kind.entry.format(cls=names.cls),
        "core": core_range(),
        "dependencies": ", ".join(map(_toml, (f"kedit-core{core_range()}", *kind.dependencies))),
        "data": ", ".join(map(_toml, kind.data)),
        "authors": f"{{ {written} }}" if written else "",
        "license": license,
        "holder": holder or f"the authors of {names.distribution}",
        "year": str(date.today().year),
    }


def _author(author: str | None) -> tuple[str, str]:
    """Name and address; both may be empty."""
    if author is None:
        return "", ""
    match = re.fullmatch(r"\s*([^<>]*?)\s*(?:<\s*([^<>\s]+@[^<>\s]+)\s*>)?\s*", author)
    if match is None or not match[1] or not author.isprintable():
        raise InputError(f"--author {author!r} is no name; give 'Name' or 'Name <name@example.org>'")
    return match[1], match[2] or ""


def _toml(text: str) -> str:
    """A basic string of TOML; JSON's are such, but for what is not printable, which is refused before."""
    return json.dumps(text, ensure_ascii=False)


def _templates(folder: Traversable, path: Path) -> list[tuple[Path, Traversable]]:
    found: list[tuple[Path, Traversable]] = []
    for each in folder.iterdir():
        if each.is_dir():
            found += _templates(each, path / each.name)
        elif each.name.endswith(".in"):
            found.append((path / each.name.removesuffix(".in"), each))
    return found


def _named(path: Path, names: PluginNames) -> Path:
    parts = (names.package if part == "PACKAGE" else re.sub(r"^dot_", ".", part) for part in path.parts)
    return Path(*parts)
