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

_ON_CORE = re.compile(r"kedit[-_.]+core(?![\w.-])", re.IGNORECASE)  # how a requirement on kedit-core begins

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


def article(word: str) -> str:
    """``a`` or ``an``, as the word that follows asks for."""
    return "an" if word[:1] in "aeiou" else "a"


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
        needs: that distribution's requirements on kedit-core, as its metadata has them.
    """

    group: str
    name: str
    value: str
    distribution: str
    version: str = ""
    needs: tuple[str, ...] = field(default=(), eq=False)
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
        every = metadata.entry_points()  # asked once: each call goes through all that is installed
        entry_points = [entry for group in GROUPS for entry in every.select(group=group)]
    providers: dict[int, tuple[str, str, tuple[str, ...]]] = {}
    seen: dict[tuple[str, str, str, str], Found] = {}
    for entry in entry_points:
        if entry.group in GROUPS:
            distribution = getattr(entry, "dist", None)
            if id(distribution) not in providers:
                providers[id(distribution)] = _described(distribution)
            name, version, needs = providers[id(distribution)]
            # the same distribution may be seen twice, as when a source folder lies on the path beside its install
            seen.setdefault(
                (entry.group, entry.name, entry.value, normalized(name)),
                Found(
                    group=entry.group,
                    name=entry.name,
                    value=entry.value,
                    distribution=name,
                    version=version,
                    needs=needs,
                    loader=entry.load,
                ),
            )
    return sorted(seen.values(), key=lambda found: (GROUPS.index(found.group), found.name, found.distribution))


def _described(distribution: Any) -> tuple[str, str, tuple[str, ...]]:
    """A distribution's name, version and requirements on kedit-core; broken metadata tells less, and is no error."""

    def told(attribute: str) -> Any:
        try:
            return getattr(distribution, attribute, None)
        except FOREIGN_FAILURES:  # files that are gone or no text, fields that are not there
            return None

    name, version, requires = told("name"), told("version"), told("requires")
    needs = tuple(each for each in requires or () if _ON_CORE.match(each))
    return name or UNKNOWN_DISTRIBUTION, version or "", needs
