"""Registering plugins with one pluggy manager, and asking them, with a record of who answered what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy
from attrs import evolve

from kedit_core.contract import PROJECT, HookSpecs
from kedit_core.plugins._entries import CORE, normalized, reason
from kedit_core.plugins._guard import Implementation, Origin, implementations
from kedit_core.plugins._merge import passed_on

if TYPE_CHECKING:
    from kedit_core.requests import EditRequest

T = TypeVar("T")

# where the core's own implementation stands, whatever order plugins are registered in and whatever they ask for
_CORE_EDGES = {
    "prepare_requests": {"tryfirst": True, "trylast": False},
    "apply_to_model": {"tryfirst": False, "trylast": True},
    "restore": {"tryfirst": False, "trylast": True},
}


class _StandIn:
    """What pluggy gets to see of a plugin: its guarded functions."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        vars(self).update(functions)


class Registry:
    """Plugins of one host, each of their functions guarded, and the calls of hooks.

    Attributes:
        hook: pluggy's hook callers, for callers that want the raw answers.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)
        self.hook: Any = self._manager.hook
        self._edges: dict[str, _StandIn] = {}
        self._calls: list[list[tuple[Origin, Any]]] = []
        self._chain: list[Sequence[EditRequest]] = []

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the registered plugins, in the order of registration."""
        return tuple(name for name, _ in self._manager.list_name_plugin() if name not in self._edges)

    def register(
        self, plugin: object, name: str | None = None, distribution: str | None = None, version: str = ""
    ) -> None:
        """Add a plugin object or module.

        Args:
            plugin: has functions marked with ``@hookimpl``.
            name: for messages; by default that of its class or module.
            distribution: whom to blame; by default the top package it comes from.

        Raises:
            PluginError: an implementation is of no hook, or its arguments do not fit; nothing of it is registered.
        """
        described = getattr(plugin, "__name__", None) or type(plugin).__name__
        module: str = getattr(plugin, "__module__", None) or getattr(plugin, "__name__", None) or ""
        package = module.partition(".")[0].replace("_", "-")
        self._register(plugin, Origin(name or described, distribution or package, version))

    def _register(self, plugin: object, origin: Origin) -> None:
        name = f"{origin.distribution}:{origin.plugin}"
        count = sum(taken == name or taken.startswith(f"{name}#") for taken in self.names)
        name = f"{name}#{count + 1}" if count else name
        found = implementations(plugin, origin)
        core = normalized(origin.distribution) == CORE
        at_edge = [each for each in found if core and each.hook in _CORE_EDGES and not each.wrapper]
        try:
            self._manager.register(self._stand_in([each for each in found if each not in at_edge]), name)
        except pluggy.PluginValidationError as error:
            raise origin.error("register", f"cannot be registered ({reason(error)})") from error
        if at_edge:
            moved = [evolve(each, options={**each.options, **_CORE_EDGES[each.hook]}) for each in at_edge]
            self._edges[f"{name} (core)"] = self._stand_in(moved)
        # whoever is registered last is the very first or very last to be called, so the core's edges come last again
        for edge_name, edge in self._edges.items():
            if self._manager.has_plugin(edge_name):
                self._manager.unregister(name=edge_name)
            self._manager.register(edge, edge_name)

    def _stand_in(self, found: Sequence[Implementation]) -> _StandIn:
        """An object with the guarded functions, which is what pluggy gets to see."""
        return _StandIn(
            {
                each.name: each.guarded(self._record, self._chained if each.hook == "prepare_requests" else None)
                for each in found
            }
        )

    def _chained(self, requests: Sequence[EditRequest]) -> Sequence[EditRequest]:
        return self._chain[-1] if self._chain else requests

    def _record(self, implementation: Implementation, answer: Any) -> None:
        if self._calls:
            self._calls[-1].append((implementation.origin, answer))
        if implementation.hook == "prepare_requests" and self._chain:
            self._chain[-1] = passed_on(implementation.origin, answer)

    @contextmanager
    def _recording(self) -> Iterator[list[tuple[Origin, Any]]]:
        """Who answered what, for one call of a hook (calls may nest)."""
        self._calls.append([])
        try:
            yield self._calls[-1]
        finally:
            self._calls.pop()

    def _answers(self, hook: str, **arguments: Any) -> list[tuple[Origin, Any]]:
        """Every answer with who gave it, in the order of the calls."""
        with self._recording() as given:
            answers = getattr(self.hook, hook)(**arguments)
        return [(self._origin(hook, answer, given), answer) for answer in answers]

    def _first(self, hook: str, kind: type[T] | None, **arguments: Any) -> T | None:
        with self._recording() as given:
            answer = getattr(self.hook, hook)(**arguments)
        if answer is not None and kind is not None and not isinstance(answer, kind):
            origin = self._origin(hook, answer, given)
            raise origin.error(hook, f"returned {type(answer).__name__} from {hook}, not {kind.__name__}")
        return answer  # type: ignore[no-any-return]

    def _origin(self, hook: str, answer: Any, given: Sequence[tuple[Origin, Any]]) -> Origin:
        """Whose answer this is: the very object one of them gave, or else a wrapper's work."""
        for origin, theirs in given:
            if theirs is answer:
                return origin
        wrappers = [each.plugin_name for each in getattr(self.hook, hook).get_hookimpls() if each.wrapper]
        return Origin(f"wrapper of {hook}", " or ".join(wrappers) or "(unknown)")
