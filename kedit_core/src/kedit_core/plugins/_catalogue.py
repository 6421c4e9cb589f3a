"""What is installed, as the entry points tell it: listed without importing, loaded one by one, faults kept apart."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen

from kedit_core import __version__
from kedit_core.contract import API_VERSION, MethodInfo
from kedit_core.errors import DuplicateNameError, KeditError, PluginError, UnknownNameError
from kedit_core.plugins._entries import (
    COMMANDS,
    CORE,
    FOREIGN_FAILURES,
    METHODS,
    NARROWING,
    OPERATIONS,
    PLUGINS,
    Found,
    article,
    load_object,
    nearest,
    normalized,
    read_entries,
    reason,
)
from kedit_core.plugins._fitting import sorted_out

_WORDS = {METHODS: "method", OPERATIONS: "operation kind", PLUGINS: "plugin", COMMANDS: "command"}


@frozen
class Problem:
    """Something that was left out, and why.

    Attributes:
        found: the entry; for a name in KEDIT_PLUGINS that nothing installed bears, an entry of the group KEDIT_PLUGINS;
            for a distribution made for another kedit-core, its first entry.
        error: what would have been raised, its cause attached.
    """

    found: Found
    error: KeditError


class Catalogue:
    """One reading of the entry points.

    Reading takes about 10 ms and imports nothing; every object is imported when it is first asked for. What cannot be
    used is put into :attr:`problems` and left out, so that one broken distribution never hides the others.

    Attributes:
        problems: filled as things are loaded; never raised by a listing.
        left_out: entries that ``KEDIT_PLUGINS`` excludes.
        unfit: entries of distributions that ask for another kedit-core than this one, each with the sentence about it;
            a distribution is one problem.
    """

    def __init__(
        self, entries: Iterable[Found] = (), left_out: Iterable[Found] = (), *, core: str = __version__
    ) -> None:
        """Take the entries that fit; nothing is imported.

        Args:
            entries: what is there.
            left_out: what was left out, for messages.
            core: the version of kedit-core that plugins must go with.
        """
        self.problems: list[Problem] = []
        self.left_out = tuple(left_out)
        self._core = core
        self._by_name: dict[tuple[str, str], list[Found]] = {}
        self._loaded: dict[tuple[str, str], Any] = {}
        fitting, self.unfit = sorted_out(entries, core)
        for sentence in dict.fromkeys(self.unfit.values()):
            first = next(found for found, theirs in self.unfit.items() if theirs == sentence)
            self.report(first, _unfit(first, sentence))
        for entry in fitting:
            self._by_name.setdefault((entry.group, entry.name), []).append(entry)
        for sharing in self._by_name.values():
            if len(sharing) > 1:
                self.report(sharing[0], _clash(sharing))

    @classmethod
    def installed(
        cls, environ: Mapping[str, str] | None = None, entry_points: Iterable[Any] | None = None
    ) -> Catalogue:
        """Read what is installed.

        Args:
            environ: where ``KEDIT_PLUGINS`` is looked up: a comma list of distributions to keep; empty keeps none; not
                set keeps all. kedit-core itself is always kept. Defaults to the process's environment.
            entry_points: stands in for the installed ones (tests).
        """
        entries = read_entries(entry_points)
        wanted = (os.environ if environ is None else environ).get(NARROWING)
        if wanted is None:
            return cls(entries)
        asked = [name.strip() for name in wanted.split(",") if name.strip()]
        keep = {normalized(name) for name in asked} | {CORE}
        catalogue = cls(
            [entry for entry in entries if normalized(entry.distribution) in keep],
            [entry for entry in entries if normalized(entry.distribution) not in keep],
        )
        there = {normalized(entry.distribution): entry.distribution for entry in entries}
        for name in asked:
            if normalized(name) not in {*there, CORE}:
                hint = nearest(normalized(name), there)
                error = UnknownNameError(f"{NARROWING} names {name!r}, which provides nothing to kedit here{hint}")
                catalogue.report(Found(group=NARROWING, name=name, value="", distribution=name), error)
        return catalogue

    def including(self, *methods: MethodInfo) -> Catalogue:
        """The same with methods that no distribution declares (yet): for trying one out, and for tests."""
        entries = [found for sharing in self._by_name.values() for found in sharing]
        local = [Found.of(METHODS, info.name, info) for info in methods]
        return Catalogue([*entries, *self.unfit, *local], self.left_out, core=self._core)

    def report(self, found: Found, error: KeditError) -> None:
        """Add to :attr:`problems`, once for every entry and message."""
        problem = Problem(found, error)
        if all((known.found, str(known.error)) != (found, str(error)) for known in self.problems):
            self.problems.append(problem)

    def entries(self, group: str) -> list[Found]:
        """All entries of a group that can be told apart, sorted by name; nothing is imported."""
        return [sharing[0] for (of, _), sharing in sorted(self._by_name.items()) if of == group and len(sharing) == 1]

    def find(self, group: str, name: str) -> Found:
        """The entry of that name.

        Raises:
            UnknownNameError: nobody provides it; the message has the nearest names and what to do.
            PluginError: who provides it was made for another kedit-core.
            DuplicateNameError: two distributions provide it; the message names both.
        """
        sharing = self._by_name.get((group, name))
        if not sharing:
            self._refuse_unfit(group, name)
            raise UnknownNameError(self._unknown(group, name))
        if len(sharing) > 1:
            raise _clash(sharing)
        return sharing[0]

    def distribution_of(self, group: str, name: str) -> str:
        """Name of the distribution that provides it; raises as :meth:`find` does."""
        return self.find(group, name).distribution

    def methods(self) -> dict[str, MethodInfo]:
        """Every usable method by name. Imports the modules that describe them, which import no torch."""
        usable: dict[str, MethodInfo] = {}
        for found in self.entries(METHODS):
            try:
                usable[found.name] = self._method(found)
            except KeditError as error:
                self.report(found, error)
        return usable

    def method(self, name: str) -> MethodInfo:
        """The description of one method.

        Raises:
            UnknownNameError, DuplicateNameError: as :meth:`find`.
            PluginError: its description cannot be loaded, or was written for another version of the contract.
        """
        return self._method(self.find(METHODS, name))

    def plugins(self) -> list[tuple[Found, Any]]:
        """Every cross-cutting plugin that loads, core's own first.

        An entry may be a plugin object (or module), a class or function that makes one (called anew each time, so that
        two Editors share no state), or a list or tuple of these. What fails is reported in :attr:`problems`.
        """
        usable: list[tuple[Found, Any]] = []
        for found in sorted(self.entries(PLUGINS), key=lambda found: normalized(found.distribution) != CORE):
            try:
                usable.extend((found, plugin) for plugin in _made(self._load(found)))
            except KeditError as error:
                self.report(found, error)
            except FOREIGN_FAILURES as error:
                failure = found.error(f"cannot be made ({reason(error)})")
                failure.__cause__ = error
                self.report(found, failure)
        return usable

    def commands(self) -> dict[str, Found]:
        """Commands for the command line by name, none of them imported."""
        return {found.name: found for found in self.entries(COMMANDS)}

    def operation_kind(self, kind: str, provider: str | None = None) -> type[Any]:
        """The class that implements a kind of module or router operation.

        Args:
            kind: as a patch's manifest names it.
            provider: the distribution that the manifest says the patch was made with, for the message.

        Raises:
            UnknownNameError: no installed distribution has that kind.
            PluginError: its class cannot be loaded.
        """
        self._refuse_unfit(OPERATIONS, kind)
        if (OPERATIONS, kind) not in self._by_name and provider and re.fullmatch(r"[A-Za-z0-9][\w.-]{0,80}", provider):
            hint = self._excluded(OPERATIONS, kind) or f"; the patch says that {provider} provides it"
            raise UnknownNameError(f"no installed distribution has the operation kind {kind!r}{hint}")
        found = self.find(OPERATIONS, kind)
        cls = self._load(found)
        if not inspect.isclass(cls):
            raise found.error(f"is {type(cls).__name__}, but an operation kind is a class")
        return cls

    def hparams_class(self, info: MethodInfo) -> type[Any]:
        """The class of a method's settings; importing it imports no torch.

        Raises:
            PluginError: it cannot be imported or is no class.
        """
        found = self.find(METHODS, info.name)
        try:
            cls = load_object(info.hparams)
        except KeditError:
            raise
        except FOREIGN_FAILURES as error:
            raise found.error(f"names settings {info.hparams!r} that cannot be imported ({reason(error)})") from error
        if not inspect.isclass(cls):
            raise found.error(f"names settings {info.hparams!r}, which is no class")
        return cls

    def _load(self, found: Found) -> Any:
        """Import once, however often it is asked for."""
        key = (found.group, found.name)
        if key not in self._loaded:
            self._loaded[key] = found.load()
        return self._loaded[key]

    def _method(self, found: Found) -> MethodInfo:
        info = self._load(found)
        if not isinstance(info, MethodInfo):
            raise found.error(f"is {type(info).__name__}, but a method is described by a MethodInfo")
        if info.api != API_VERSION:
            remedy = "upgrade kedit-core" if info.api > API_VERSION else f"upgrade {found.distribution}"
            raise found.error(
                f"was written for version {info.api} of kedit's contract, and this kedit-core has version "
                f"{API_VERSION}; {remedy}",
                hook="api",
            )
        if info.name != found.name:
            raise found.error(f"describes a method called {info.name!r}; the two names must be the same")
        return info

    def _refuse_unfit(self, group: str, name: str) -> None:
        """Raise what there is to say when only distributions made for another kedit-core have this name."""
        for found, sentence in self.unfit.items():
            if (found.group, found.name) == (group, name) and (group, name) not in self._by_name:
                raise _unfit(found, f"{_WORDS.get(group, group)} {name!r} cannot be used: {sentence}")

    def _excluded(self, group: str, name: str) -> str:
        providers = sorted({entry.provider for entry in self.left_out if (entry.group, entry.name) == (group, name)})
        return f"; {' and '.join(providers)} has it, but {NARROWING} leaves that out" if providers else ""

    def _unknown(self, group: str, name: str) -> str:
        word = _WORDS.get(group, group)
        if excluded := self._excluded(group, name):
            return f"no {word} is called {name!r} here{excluded}"
        known = sorted(entry for of, entry in self._by_name if of == group)
        hint = nearest(name, known) or (f" (there are {', '.join(known)})" if known else " (none is installed)")
        return (
            f"no installed distribution has {article(word)} {word} called {name!r}{hint}; pip install the distribution "
            "that has it ('pip install kedit' brings all of kedit's own)"
        )


def _unfit(found: Found, sentence: str) -> PluginError:
    return PluginError(sentence, plugin=found.name, distribution=found.distribution, hook="load")


def _clash(sharing: Sequence[Found]) -> DuplicateNameError:
    word = _WORDS.get(sharing[0].group, sharing[0].group)
    providers = " and ".join(f"{found.provider} ({found.value})" for found in sharing)
    return DuplicateNameError(
        f"{word} {sharing[0].name!r} is provided by both {providers}; uninstall one, or name the distributions to use "
        f"in {NARROWING}"
    )


def _made(target: Any) -> list[Any]:
    """Plugin objects of an entry; None stands for "nothing to add here"."""
    if isinstance(target, (list, tuple)):
        return [plugin for part in target for plugin in _made(part)]
    if inspect.isclass(target) or inspect.isroutine(target):
        made = target()
        if inspect.isclass(made) or inspect.isroutine(made):
            raise TypeError(f"{target.__qualname__} gave {made!r}, not a plugin object")
        return _made(made)
    return [] if target is None else [target]
