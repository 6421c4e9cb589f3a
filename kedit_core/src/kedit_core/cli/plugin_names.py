"""The names in a new plugin: all follow from the one its author chose, and none may be taken."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec

from attrs import frozen

from kedit_core.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]")  # PEP 508
_LONGEST = 40
_OURS = re.compile(r"kedit(-core)?")
_USED = frozenset(  # what the template of a method imports beside its class
    [
        "EditContext",
        "EditPatch",
        "EditRequest",
        "InputError",
        "LowRankDelta",
        "Rows",
        "Sequence",
        "Site",
        "Tail",
        "Tensor",
    ]
)
_PREFIX = re.compile(r"kedit_(methods?_|adapters?_|metrics?_|datasets?_)?")


@frozen
class PluginNames:
    """What things in a new plugin are called.

    Attributes:
        distribution: what pip installs, in the form in which indexes compare names: ``my-editor``.
        package: what Python imports: ``my_editor``.
        name: what kedit lists, and users type: the package without a leading ``kedit_``, ``kedit_methods_``, ...
        cls: how its classes begin: ``MyEditor``.
    """

    distribution: str
    package: str
    name: str
    cls: str


def plugin_names(name: str) -> PluginNames:
    """The names that follow from a plugin's.

    Raises:
        InputError: it is no name of a distribution (PEP 508), makes no name of a package, or the package's name is
            taken by Python, by kedit or by something that is installed.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no name of a distribution; use letters, digits, and - _ . between them, such as my-editor"
        )
    if len(name) > _LONGEST:
        raise InputError(f"the name {name[:20]}... has {len(name)} characters; take one of at most {_LONGEST}")
    distribution = re.sub(r"[-_.]+", "-", name).lower()
    package = distribution.replace("-", "_")
    if not package.isidentifier() or keyword.iskeyword(package):
        raise InputError(
            f"{name!r} makes the package name {package!r}, which Python cannot import; take another, such as "
            f"kedit-{distribution}"
        )
    if _OURS.fullmatch(distribution):
        raise InputError(f"{distribution} is kedit itself; take another name, such as kedit-mine")
    if package in sys.stdlib_module_names or package == "test":
        raise InputError(f"Python has a module {package!r} of its own; take another name, such as kedit-{distribution}")
    if _importable(package):
        raise InputError(
            f"a module {package!r} is installed here already; take another name, or work on the one that is there"
        )
    short = _PREFIX.sub("", package, count=1)
    short = short if short.isidentifier() and not keyword.iskeyword(short) else package
    cls = "".join(part.capitalize() for part in short.split("_"))
    return PluginNames(distribution, package, short, f"{cls}Method" if cls in _USED or keyword.iskeyword(cls) else cls)


def _importable(package: str) -> bool:
    """Whether there is such a module; a folder without ``__init__.py`` is none."""
    try:
        found = find_spec(package)
    except (ImportError, ValueError, AttributeError):  # what stands there is no module that could be imported
        return True
    return found is not None and found.origin is not None
