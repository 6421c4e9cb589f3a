"""Entry points as they were found: who provides which name, before anything is imported."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import metadata
from typing import Any

from attrs import field, frozen

from kedit_core.errors import KeditError, PluginError

METHODS = "kedit.methods"
OPERATIONS = "kedit.operations"
PLUGINS = "kedit.plugins"
COMMANDS = "kedit.commands"
GROUPS = (METHODS, OPERATIONS, PLUGINS, COMMANDS)

CORE = "kedit-core"
NARROWING = "KEDIT_PLUGINS"
UNKNOWN_DISTRIBUTION = "(unknown distribution)"

# what an import or a call of foreign code may end with; KeyboardInterrupt and the like are never swallowed
FOREIGN_FAILURES = (Exception, SystemExit)


def normalized(distribution: str) -> str:
    """The name under which package indexes compare distributions: ``Kedit_Hub`` and ``kedit-hub`` are one."""
    return re.sub(r"[-_.]+", "-", distribution).lower().strip()


def named(distribution: str, version: str | None) -> str:
    """Distribution and version as messages show them."""
    return f"{distribution} {version}" if version else distribution


def reason(error: BaseException) -> str:
    """One line for another's exception: its class and the first line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'rome'?)`` or nothing; made to be put into a sentence."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def load_object(reference: str) -> Any:
    """Import what ``"package.module:name"`` (or ``"package.module"``) says.

    Whatever the import raises comes out as it is; callers know whom to blame.
    """
    module, _, path = reference.partition(":")
    found: Any = importlib.import_module(module.strip())
    for part in filter(None, path.strip().split(".")):
        found = getattr(found, part)
    return found


@frozen(kw_only=True)
class Found:
    """One entry point: a name in a group, and who provides it. Nothing is imported until :meth:`load`.

    Attributes:
        group: one of :data:`GROUPS`.
        name: what users call it.
        value: ``"package.module:attribute"``.
        distribution: name of the distribution that declares it.
        version: that distribution's version, "" when it tells none.
    """

    group: str
    name: str
    value: str
    distribution: str
    version: str = ""
    _loader: Callable[[], Any] | None = field(default=None, eq=False, repr=False, alias="loader")

    @classmethod
    def of(cls, group: str, name: str, target: Any, *, distribution: str = "kedit-local", version: str = "") -> Found:
        """An entry for an object at hand, as if a distribution had declared it."""
        value = f"{getattr(target, '__module__', '?')}:{getattr(target, '__qualname__', name)}"
        return cls(
            group=group, name=name, value=value, distribution=distribution, version=version, loader=lambda: target
        )

    @property
    def provider(self) -> str:
        """Distribution and version, for messages."""
        return named(self.distribution, self.version)

    def load(self) -> Any:
        """Import the object.

        Raises:
            PluginError: it cannot be imported; names the entry and its distribution, with the cause attached.
        """
        try:
            return load_object(self.value) if self._loader is None else self._loader()
        except KeditError as error:
            error.add_note(f"while loading {self.group} entry {self.name!r} of {self.provider}")
            raise
        except FOREIGN_FAILURES as error:
            raise self.error(f"cannot be loaded from {self.value!r} ({reason(error)})") from error

    def error(self, what: str, hook: str = "load") -> PluginError:
        """A :class:`PluginError` about this entry: ``what`` completes the sentence begun with its name."""
        message = f"{self.group} entry {self.name!r} of {self.provider} {what}"
        return PluginError(message, plugin=self.name, distribution=self.distribution, hook=hook)


def read_entries(entry_points: Iterable[Any] | None = None) -> list[Found]:
    """Every entry of our groups, in an order that does not depend on the file system.

    Args:
        entry_points: objects with ``group``, ``name``, ``value``, ``dist`` and ``load()``; None for what is installed.
    """
    if entry_points is None:
        entry_points = [entry for group in GROUPS for entry in metadata.entry_points(group=group)]
    seen: dict[tuple[str, str, str, str], Found] = {}
    for entry in entry_points:
        if entry.group in GROUPS:
            found = _found(entry)
            # the same distribution may be seen twice, as when a source folder lies on the path beside its install
            seen.setdefault((found.group, found.name, found.value, normalized(found.distribution)), found)
    return sorted(seen.values(), key=lambda found: (GROUPS.index(found.group), found.name, found.distribution))


def _found(entry: Any) -> Found:
    distribution = getattr(entry, "dist", None)
    return Found(
        group=entry.group,
        name=entry.name,
        value=entry.value,
        # broken metadata gives None for either
        distribution=getattr(distribution, "name", None) or UNKNOWN_DISTRIBUTION,
        version=getattr(distribution, "version", None) or "",
        loader=entry.load,
    )
