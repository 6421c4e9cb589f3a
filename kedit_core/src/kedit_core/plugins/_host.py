"""The host of one Editor: what it registers, and each hook as a plain, typed method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve

from kedit_core.contract import (
    Choice,
    DatasetInfo,
    ExporterInfo,
    Installed,
    MethodInfo,
    MetricInfo,
    MetricResult,
    ModelSource,
    Way,
)
from kedit_core.errors import KeditError, MethodError
from kedit_core.plugins._catalogue import Catalogue, Problem
from kedit_core.plugins._entries import FOREIGN_FAILURES, METHODS, Found, load_object, reason
from kedit_core.plugins._guard import Origin, implementations
from kedit_core.plugins._merge import chosen, listed, merged, passed_on
from kedit_core.plugins._registry import Registry

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers
    from kedit_core.hparams import HyperParams
    from kedit_core.models import ModelAdapter
    from kedit_core.patches import EditPatch
    from kedit_core.requests import EditRequest
    from kedit_core.training import BaseTrainer, TrainingContext, TrainingHyperParams

T = TypeVar("T")


class Host(Registry):
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
        super().__init__()
        self.catalogue = catalogue
        self.method = method
        self.method_plugin: object | None = None
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

    def adapters(self) -> list[ModelAdapter]:
        """All registered adapters for architectures, each with the name of the distribution it came from."""
        items: list[tuple[Origin, ModelAdapter]] = self._listed("register_adapters", None)
        return [_stamped(origin, adapter) for origin, adapter in items]

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
            return passed_on(*answers[-1]) if answers else requests
        finally:
            self._chain.pop()

    def choose_hparams(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: HyperParams, undecided: tuple[str, ...]
    ) -> Choice | None:
        """What the method chooses for settings that nobody set, or None."""
        arguments = {"context": context, "requests": requests, "hparams": hparams, "undecided": undecided}
        chosen: Choice | None = self._first("choose_hparams", Choice, **arguments)
        return chosen

    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: HyperParams
    ) -> Mapping[str, Any] | None:
        """What the method would do, or None when it does not say."""
        arguments = {"context": context, "requests": requests, "hparams": hparams}
        told: Mapping[str, Any] | None = self._first("plan", Mapping, **arguments)
        return told

    def make_trainer(self, context: TrainingContext, hparams: TrainingHyperParams) -> BaseTrainer[Any]:
        """What trains the method's editor.

        Raises:
            MethodError: the method gave none.
        """
        trainer: BaseTrainer[Any] | None = self._first("make_trainer", None, context=context, hparams=hparams)
        if trainer is None:
            name = repr(self.method.name) if self.method else "(none)"
            raise MethodError(f"method {name} gave no trainer, so there is nothing to train; see `kedit methods`")
        return trainer

    def compute_patch(self, context: EditContext, requests: Sequence[EditRequest], hparams: HyperParams) -> EditPatch:
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

    def apply_to_model(self, context: EditContext, patch: EditPatch, way: Way | None) -> Installed:
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

    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest], answers: Answers) -> None:
        """Have every plugin ask for what its ``evaluate`` will ask."""
        self._answers("read_ahead", context=context, requests=requests, answers=answers)

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

    def _listed(self, hook: str, kind: type[T] | None) -> list[tuple[Origin, T]]:
        return listed(reversed(self._answers(hook)), hook, kind)


def _stamped(origin: Origin, adapter: ModelAdapter) -> ModelAdapter:
    # adapters are a later room's, so their class cannot be named here
    distribution = getattr(adapter, "distribution", None)
    if distribution is None:
        what = f"returned {type(adapter).__name__} in the list of register_adapters, not ModelAdapter"
        raise origin.error("register_adapters", what)
    return adapter if distribution else evolve(adapter, distribution=origin.distribution)
