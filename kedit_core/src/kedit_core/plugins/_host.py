"""The host of one Editor: its plugin manager, and each hook as a plain, typed method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy
from attrs import evolve

from kedit_core.contract import (
    PROJECT,
    DatasetInfo,
    ExporterInfo,
    HookSpecs,
    Installed,
    MethodInfo,
    MetricInfo,
    MetricResult,
    ModelSource,
    Way,
)
from kedit_core.errors import KeditError, MethodError
from kedit_core.plugins._catalogue import Catalogue, Problem
from kedit_core.plugins._entries import CORE, FOREIGN_FAILURES, METHODS, Found, load_object, normalized, reason
from kedit_core.plugins._guard import Implementation, Origin, implementations
from kedit_core.plugins._merge import chosen, listed, merged

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers
    from kedit_core.hparams import HyperParams
    from kedit_core.models import ModelAdapter
    from kedit_core.patches import EditPatch
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


class Host:
    """The plugins of one Editor, and nobody else's: cross-cutting ones, extra objects, and only the chosen method.

    Each hook is a method here, so callers get types, and faults of plugins come out as :class:`PluginError` that names
    plugin, distribution and hook. Errors of kedit's own pass as they are, with a note on where they came from.

    Attributes:
        catalogue: what the plugins were taken from.
        method: description of the chosen method, or None.
        method_plugin: the method's object, or None.
        hook: pluggy's hook callers, for callers that want the raw answers.
    """

    def __init__(self, catalogue: Catalogue, method: MethodInfo | None = None, extra: Sequence[object] = ()) -> None:
        """Register what the catalogue has, then the method, then ``extra``.

        A cross-cutting plugin that cannot be registered is reported in ``catalogue.problems`` and left out.

        Raises:
            PluginError: the method or one of ``extra`` cannot be loaded or registered.
        """
        self.catalogue = catalogue
        self.method = method
        self.method_plugin: object | None = None
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)
        self.hook: Any = self._manager.hook
        self._edges: dict[str, _StandIn] = {}
        self._calls: list[list[tuple[Origin, Any]]] = []
        self._chain: list[Sequence[EditRequest]] = []
        for found, plugin in catalogue.plugins():
            self._register_found(found, plugin)
        if method is not None:
            self.method_plugin = self._load_method(method)
        for plugin in extra:
            self.register(plugin)

    @property
    def problems(self) -> list[Problem]:
        """What was left out, and why."""
        return self.catalogue.problems

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

    def adapters(self) -> list[ModelAdapter]:
        """All registered adapters for architectures."""
        # of no class that could be named here: adapters are a later room's, whose registry checks them
        items: list[tuple[Origin, ModelAdapter]] = self._listed("register_adapters", None)
        return [adapter for _, adapter in items]

    def model_sources(self) -> list[ModelSource]:
        """All registered sources of models."""
        return [source for _, source in self._listed("register_model_sources", ModelSource)]

    def model_source(self, name: str) -> ModelSource:
        """The source that has the model ``name``; UnknownNameError or DuplicateNameError otherwise."""
        items = self._listed("register_model_sources", ModelSource)
        return chosen(items, {i: source.names for i, (_, source) in enumerate(items)}, name, "model")

    def datasets(self) -> list[DatasetInfo]:
        """All registered datasets."""
        return [dataset for _, dataset in self._listed("register_datasets", DatasetInfo)]

    def dataset(self, name: str) -> DatasetInfo:
        """The dataset ``name``; UnknownNameError or DuplicateNameError otherwise."""
        items = self._listed("register_datasets", DatasetInfo)
        return chosen(items, {i: (dataset.name,) for i, (_, dataset) in enumerate(items)}, name, "dataset")

    def metrics(self) -> list[MetricInfo]:
        """All declared metrics."""
        return [metric for _, metric in self._listed("register_metrics", MetricInfo)]

    def exporters(self) -> list[ExporterInfo]:
        """All registered formats to export to."""
        return [exporter for _, exporter in self._listed("register_exporters", ExporterInfo)]

    def exporter(self, name: str) -> ExporterInfo:
        """The exporter ``name``; UnknownNameError or DuplicateNameError otherwise."""
        items = self._listed("register_exporters", ExporterInfo)
        return chosen(items, {i: (exporter.name,) for i, (_, exporter) in enumerate(items)}, name, "export format")

    def find_resource(self, role: str, key: str) -> Path | None:
        """A file that a plugin ships for ``role`` under a content key, or None."""
        return self._first("find_resource", Path, role=role, key=key)

    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> Sequence[EditRequest]:
        """The requests after every plugin's checks: each gets what the one before returned, the core's own first."""
        self._chain.append(requests)
        try:
            answers = self._answers("prepare_requests", context=context, requests=requests)
            return _requests(*answers[-1]) if answers else requests
        finally:
            self._chain.pop()

    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: HyperParams
    ) -> Mapping[str, Any] | None:
        """What the method would do, or None when it does not say."""
        told: Mapping[str, Any] | None = self._first("plan", Mapping, context=context, requests=requests, hparams=hparams)
        return told

    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: HyperParams
    ) -> EditPatch:
        """The method's patch.

        Raises:
            MethodError: no method was chosen, or it returned nothing.
        """
        patch: EditPatch | None = self._first(
            "compute_patch", None, context=context, requests=requests, hparams=hparams
        )
        if patch is None:
            if self.method is None:
                raise MethodError("no edit can be computed without a method; choose one of 'kedit methods'")
            raise MethodError(f"method {self.method.name!r} returned no patch from compute_patch")
        return patch

    def apply_to_model(self, context: EditContext, patch: EditPatch, way: Way) -> Installed:
        """Put a patch on the model.

        Raises:
            MethodError: no plugin did.
        """
        installed = self._first("apply_to_model", Installed, context=context, patch=patch, way=way)
        if installed is None:
            raise MethodError("no plugin put the patch on the model; register the core's own implementation")
        return installed

    def restore(self, context: EditContext, patch: EditPatch) -> bool:
        """Take a patch off the model; False when no plugin did."""
        return self._first("restore", bool, context=context, patch=patch) is True

    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> dict[str, MetricResult]:
        """Metrics of all plugins as one mapping.

        Raises:
            PluginError: two plugins return one key and neither (or both) declares to replace the other's.
        """
        answers = self._answers("evaluate", context=context, requests=requests, base=base, edited=edited)
        # pluggy asks the last registered first; tables read better with the core's metrics on top
        return merged(reversed(answers), self._listed("register_metrics", MetricInfo))

    def drop_request(self, context: EditContext, patch: EditPatch, request_id: str) -> EditPatch | None:
        """A patch without one of its requests, or None when the method cannot make it."""
        patch_without: EditPatch | None = self._first(
            "drop_request", None, context=context, patch=patch, request_id=request_id
        )
        return patch_without

    def _register_found(self, found: Found, plugin: object) -> None:
        try:
            self._register(plugin, Origin(found.name, found.distribution, found.version))
        except KeditError as error:
            self.catalogue.report(found, error)

    def _load_method(self, info: MethodInfo) -> object:
        """Import, make and register the implementation of a method."""
        found = self._entry_of(info)
        try:
            plugin: object = load_object(info.implementation)()
        except FOREIGN_FAILURES as error:
            what = f"has an implementation that cannot be made from {info.implementation!r} ({reason(error)})"
            raise found.error(what) from error
        origin = Origin(info.name, found.distribution, found.version)
        if all(each.hook != "compute_patch" or each.wrapper for each in implementations(plugin, origin)):
            raise origin.error("compute_patch", f"({info.implementation}) has no compute_patch marked with @hookimpl")
        self._register(plugin, origin)
        return plugin

    def _entry_of(self, info: MethodInfo) -> Found:
        """The entry point a description came from, or one made up for a description made in code."""
        try:
            if self.catalogue.method(info.name) == info:
                return self.catalogue.find(METHODS, info.name)
        except KeditError:
            pass
        package = info.implementation.partition(":")[0].partition(".")[0].replace("_", "-")
        return Found.of(METHODS, info.name, info, distribution=package)

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
        return _StandIn({
            each.name: each.guarded(self._record, self._chained if each.hook == "prepare_requests" else None)
            for each in found
        })

    def _chained(self, requests: Sequence[EditRequest]) -> Sequence[EditRequest]:
        return self._chain[-1] if self._chain else requests

    def _record(self, implementation: Implementation, answer: Any) -> None:
        if self._calls:
            self._calls[-1].append((implementation.origin, answer))
        if implementation.hook == "prepare_requests" and self._chain:
            self._chain[-1] = _requests(implementation.origin, answer)

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

    def _listed(self, hook: str, kind: type[T] | None) -> list[tuple[Origin, T]]:
        return listed(reversed(self._answers(hook)), hook, kind)

    def _origin(self, hook: str, answer: Any, given: Sequence[tuple[Origin, Any]]) -> Origin:
        """Whose answer this is: the very object one of them gave, or else a wrapper's work."""
        for origin, theirs in given:
            if theirs is answer:
                return origin
        wrappers = [each.plugin_name for each in getattr(self.hook, hook).get_hookimpls() if each.wrapper]
        return Origin(f"wrapper of {hook}", " or ".join(wrappers) or "(unknown)")


def _requests(origin: Origin, answer: Any) -> Sequence[EditRequest]:
    if not isinstance(answer, Sequence) or isinstance(answer, (str, bytes)):
        what = f"returned {type(answer).__name__} from prepare_requests; return a list of requests"
        raise origin.error("prepare_requests", what)
    return answer
