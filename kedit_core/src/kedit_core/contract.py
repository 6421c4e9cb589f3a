"""The contract between the core and its plugins: the hooks, and the small data types they speak.

This module imports neither torch nor transformers, so describing a method costs nothing. docs/hooks.md says for each
hook when it is called, by whom and with what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import pluggy
from attrs import field, frozen

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers
    from kedit_core.hparams import HyperParams
    from kedit_core.models import ModelAdapter
    from kedit_core.patches import EditPatch
    from kedit_core.requests import EditRequest
    from kedit_core.training import BaseTrainer, TrainingContext, TrainingHyperParams

PROJECT = "kedit"
API_VERSION = 1

Way: TypeAlias = Literal["merged", "attached"]
Scenario: TypeAlias = Literal["single", "batch", "sequential"]
StateMode: TypeAlias = Literal["append", "extend"]

WAYS: tuple[Way, ...] = get_args(Way)
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
STATE_MODES: tuple[StateMode, ...] = get_args(StateMode)
OPERATION_TYPES = ("low_rank_delta", "dense_delta", "sparse_delta", "replace", "module", "router")

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


def _subset(known: Sequence[str]) -> Callable[[Any, Any, frozenset[str]], None]:
    def check(instance: Any, attribute: Any, value: frozenset[str]) -> None:
        if unknown := sorted(set(value) - set(known)):
            raise ValueError(f"{attribute.name} of method {instance.name!r} has {unknown}; known are {list(known)}")

    return check


def _names(values: Iterable[str]) -> frozenset[str]:
    return frozenset(values)


def _one_of(known: Sequence[str]) -> Callable[[Any, Any, str], None]:
    def check(instance: Any, attribute: Any, value: str) -> None:
        if value not in known:
            raise ValueError(f"{attribute.name} is {value!r}; known are {list(known)}")

    return check


@frozen(kw_only=True)
class MethodInfo:
    """What is known of a method without importing it: the value of a ``kedit.methods`` entry point.

    Attributes:
        name: lower case, the entry point's name.
        summary: one line for ``kedit methods``.
        family: e.g. ``locate``, ``meta``, ``memory``.
        implementation: ``"package.module:Class"``; the class is called without arguments and implements
            :meth:`HookSpecs.compute_patch`, and any other hook it likes.
        hparams: ``"package.module:Class"`` of its HyperParams; importing it imports no torch.
        operations: types of operations its patches hold (see docs/patch-format.md).
        scenarios: which of ``single``, ``batch``, ``sequential`` it can do. A method without ``batch`` gets one
            request at a time.
        state: ``append`` (each round a new patch) or ``extend`` (each round's patch replaces the one before).
        needs_subject: whether every request must have a subject that occurs in its prompt.
        presets: ``"package:folder"`` with YAML presets, or None.
        resources: roles it may ask of ``context.resource`` (for listings).
        options: names it reads from ``context.options``; an Editor refuses others.
        training: ``"package.module:Class"`` of the settings its editor is trained with (a ``TrainingHyperParams``
            whose import imports no torch); None for a method that needs no training. It then implements
            :meth:`HookSpecs.make_trainer`.
        training_presets: ``"package:folder"`` with YAML presets of these, or None.
        training_options: names that its trainer reads from ``context.options``.
        api: the version of this contract it was written for.
    """

    name: str
    summary: str
    family: str
    implementation: str
    hparams: str
    operations: frozenset[str] = field(converter=_names, validator=_subset(OPERATION_TYPES))
    scenarios: frozenset[str] = field(converter=_names, default=frozenset(SCENARIOS), validator=_subset(SCENARIOS))
    state: StateMode = field(default="append", validator=_one_of(STATE_MODES))
    needs_subject: bool = False
    presets: str | None = None
    resources: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    training: str | None = None
    training_presets: str | None = None
    training_options: tuple[str, ...] = ()
    api: int = API_VERSION


@frozen(kw_only=True)
class Installed:
    """A patch that is on a model now."""

    patch_id: str
    way: Way
    places: tuple[str, ...]
    unverified: bool = False


@frozen(kw_only=True)
class MetricResult:
    """One number with what it stands on.

    Attributes:
        value: mean over the cases that have such probes, unless ``statistics`` says otherwise; None when there is none.
        tag: which protocol made it, ``{mode}.{context}.{answer_source}.{scenario}.{n}`` and the way (``+merged``);
            results with different tags are never averaged (specs: Yang et al. 2025, arXiv 2502.11177).
        cases: case id -> score of that case.
        parts: sub-key (``neighborhood``, ...) -> mean over the cases that have it.
        unit: ``share`` (0..1), ``seconds``, ``bytes``, ...
        outputs: what was read for each probe, JSON-able, for people who want to look.
        case_parts: sub-key -> case id -> score, so that results of separate cases can be combined.
        statistics: which of ``median``, ``p95``, ``max``, ``std`` over the cases stand in ``parts`` beside the
            sub-keys; ``total`` (value and parts are sums) or ``harmonic_mean`` (the value is that of the sub-keys'
            means) in place of the mean.
        left_out: probes that this protocol could not judge (no answer to feed, ...).
    """

    value: float | None
    tag: str
    cases: Mapping[str, float] = field(factory=dict)
    parts: Mapping[str, float] = field(factory=dict)
    unit: str = "share"
    outputs: Sequence[Mapping[str, Any]] = ()
    case_parts: Mapping[str, Mapping[str, float]] = field(factory=dict)
    statistics: tuple[str, ...] = ()
    left_out: int = 0


@frozen(kw_only=True)
class MetricInfo:
    """A metric a plugin's ``evaluate`` returns; ``replaces`` names one of another plugin that it stands in for.

    Attributes:
        on_request: it is measured only when asked for by the part of its name before the first dot
            (``metrics=["fluency"]``): ``context.wants("fluency")`` tells its plugin.
        better: which end of it is good, ``"higher"`` or ``"lower"``; None where neither is. Reports mark best and worst
            by it.
    """

    name: str
    summary: str
    replaces: str | None = None
    on_request: bool = False
    better: Literal["higher", "lower"] | None = None

    @property
    def group(self) -> str:
        """What it is asked for by."""
        return self.name.partition(".")[0]


@frozen(kw_only=True)
class ModelSource:
    """Registered model names, such as ``factworld:llama``.

    ``folder(name)`` gives a local Hugging Face folder (config, weights, tokenizer); called only when the model is
    loaded.
    """

    names: tuple[str, ...]
    summary: str
    folder: Callable[[str], Path]


@frozen(kw_only=True)
class DatasetInfo:
    """A registered dataset: edit requests and, when it has one, the corpus that statistics may be taken from.

    Attributes:
        requests: gives the requests (called only when used), or None.
        corpus: gives the documents in a fixed order, or None; ``corpus_revision`` changes when they do.
        models: names of the registered models the corpus is meant for (it is taken by default for these only).
        read: gives the requests of the user's own copy, called as ``read(path, **options)``; the path is None where the
            user gave none (the reader may then fetch the dataset), and options are among ``options``.
        options: names of what ``read`` can be told beside the path.
        metrics: what a benchmark of it measures beside the core's metrics, unless told otherwise (groups of
            :class:`MetricInfo` that need nothing from the user); listed by ``kedit datasets``.
    """

    name: str
    summary: str
    requests: Callable[[], Sequence[EditRequest]] | None = None
    corpus: Callable[[], Iterable[str]] | None = None
    corpus_revision: str | None = None
    models: tuple[str, ...] = ()
    read: Callable[..., Sequence[EditRequest]] | None = None
    options: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


@frozen(kw_only=True)
class Choice:
    """What a method chose for settings that nobody had set.

    Attributes:
        values: field -> value; empty when looking did not help.
        source: what they come from, as a setting's source is called (``causal tracing``).
        reason: why, as a sentence for the user without its full stop.
    """

    values: Mapping[str, Any] = field(factory=dict)
    source: str
    reason: str


@frozen(kw_only=True)
class ExportReport:
    """What an exporter wrote: for people, and for ``--json``.

    Attributes:
        errors: place -> what is missing of the change there, as Frobenius norm relative to that of the change; 0 where
            it is whole.
        details: what else is to tell (the rank, the dtype, ...): plain JSON.
        notes: a sentence for each thing that users should know, such as who cannot load it.
    """

    errors: Mapping[str, float] = field(factory=dict)
    details: Mapping[str, Any] = field(factory=dict)
    notes: tuple[str, ...] = ()


@frozen(kw_only=True)
class ExporterInfo:
    """Another format that patches can be written in; ``kedit patch export --to NAME`` uses it.

    Attributes:
        name: lower case, what ``--to`` takes.
        summary: one line for listings.
        export: called as ``export(patches, out, **options)`` with one patch or more of one base, which stand for their
            sum in stack order, and a new path beside the one asked for (an empty folder, or a file that is not there);
            the core moves it when the call ends well, and removes it otherwise. Raises a KeditError that names the
            place and the reason when the format cannot say what a patch does.
        options: what ``export`` can be told beside that: name -> one line of help. Values come from the command line
            as YAML scalars; ``export`` checks them.
        writes: whether ``out`` is a folder or a file.
    """

    name: str
    summary: str
    export: Callable[..., ExportReport]
    options: Mapping[str, str] = field(factory=dict)
    writes: Literal["folder", "file"] = field(default="folder", validator=_one_of(("folder", "file")))


class HookSpecs:
    """The hooks, in the order in which an edit meets them. Arguments are passed by name; an implementation may leave
    out those it does not need, and gives none of them a default."""

    @hookspec
    def register_adapters(self) -> Sequence[ModelAdapter]:
        """Adapters for architectures. Called once for every Editor and by ``kedit models``, before a model is bound."""
        raise AssertionError

    @hookspec
    def register_model_sources(self) -> Sequence[ModelSource]:
        """Names of models this plugin can load. Called when a MODEL is resolved, and by ``kedit models``."""
        raise AssertionError

    @hookspec
    def register_datasets(self) -> Sequence[DatasetInfo]:
        """Datasets this plugin knows. Called when a dataset or a corpus is looked for."""
        raise AssertionError

    @hookspec
    def register_metrics(self) -> Sequence[MetricInfo]:
        """Metrics this plugin's ``evaluate`` returns; needed for replacing one, good manners otherwise."""
        raise AssertionError

    @hookspec
    def register_exporters(self) -> Sequence[ExporterInfo]:
        """Formats this plugin can write patches in. Called by ``kedit patch export``, through ``host.exporters()`` and
        ``host.exporter(name)``."""
        raise AssertionError

    @hookspec(firstresult=True)
    def find_resource(self, role: str, key: str) -> Path | None:
        """A file this plugin ships for ``role`` (e.g. ``statistics``) under a content key, or None.

        Called by ``context.find_resource`` before anything is computed; the key is a digest of all it depends on."""

    @hookspec
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> Sequence[EditRequest] | None:
        """Check and normalise requests; text stays text.

        Called once per edit with all requests, before any work. Each implementation gets what the one before
        returned; the core's own runs first and finds subjects' spans. None means unchanged."""

    @hookspec(firstresult=True)
    def choose_hparams(
        self,
        context: EditContext,
        requests: Sequence[EditRequest],
        hparams: HyperParams,
        undecided: tuple[str, ...],
    ) -> Choice | None:
        """Better values for settings that only follow from the model's depth, found on the model itself.

        Called once per Editor, before its first edit or plan, after prepare_requests, when there was no preset and the
        user did not set the fields ``undecided``; the base model is shown. None leaves them as they are."""

    @hookspec(firstresult=True)
    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: HyperParams
    ) -> Mapping[str, Any] | None:
        """What computing the patch of all these requests would take, without computing it; None when it cannot tell.

        Called once by ``editor.plan`` and ``kedit edit --plan``, after prepare_requests, with all requests; how they
        are taken, ``context.scenario`` says. A short probe of the model is allowed; weights, flags and hooks stay as
        they are. Keys, each of which may be left out, and no others:

        - ``places``: list of dotted names, parameters or modules; what only the computation will tell is a remark in
          brackets, ``"(chosen by attribution)"``.
        - ``seconds``: for all requests given and all rounds of the scenario; the core multiplies nothing, and adds
          nothing for evaluation.
        - ``memory_bytes``: int, the peak beside the model (of one round, when rounds follow one another).
        - ``patch_bytes``: int, the size of the patch file of all requests.
        - ``notes``: list of sentences."""

    @hookspec(firstresult=True)
    def make_trainer(self, context: TrainingContext, hparams: TrainingHyperParams) -> BaseTrainer[Any] | None:
        """What trains the editor that a method's edits need; for methods whose MethodInfo names ``training``.

        Called once by ``kedit train`` and ``kedit_core.training.train``, with ``context.requests`` to train on and
        ``context.validation`` of other cases; the base is frozen and in eval mode from here to the end of the training.
        Bad data and settings that do not suit the model are refused here."""

    @hookspec(firstresult=True)
    def compute_patch(self, context: EditContext, requests: Sequence[EditRequest], hparams: HyperParams) -> EditPatch:
        """Compute the edit; the model must leave this call exactly as it entered. THE hook a method implements.

        Called once per round, after prepare_requests and before apply_to_model, with the patches of the rounds
        before on the stack. Build the result with ``context.new_patch``."""
        raise AssertionError

    @hookspec(firstresult=True)
    def apply_to_model(self, context: EditContext, patch: EditPatch, way: Way | None) -> Installed:
        """Put a patch on the model; ``way`` None leaves the choice to whoever does it.

        Called by the Editor after compute_patch and by ``editor.apply``. The core's implementation (the stack)
        runs last; a plugin may wrap it, or answer first for weights that the core cannot write."""
        raise AssertionError

    @hookspec(firstresult=True)
    def restore(self, context: EditContext, patch: EditPatch) -> bool:
        """Take a patch off the model; True when done. Called by the Editor; the core's implementation runs last."""
        raise AssertionError

    @hookspec
    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest], answers: Answers) -> None:
        """Ask ``answers`` for all that this plugin's ``evaluate`` will ask; what it answers now is to be ignored.

        Called before ``evaluate``, so that the questions of many requests are read in few batches: with the base's
        answers before an edit (``answers.is_base``), and in ``single`` with each case's requests, once for all cases.
        A question that is not asked here is read when ``evaluate`` asks it, only slower."""

    @hookspec
    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> Mapping[str, MetricResult] | None:
        """Metrics of an edit.

        Called after the patch is on the model (once per case in ``single``, once otherwise). ``base`` answers as the
        model without any patch, ``edited`` as it is now; both are lazy and cached, so ask for what you need. Mappings
        of all plugins are merged; a key returned twice is an error naming both, unless one declares ``replaces``."""

    @hookspec(firstresult=True)
    def drop_request(self, context: EditContext, patch: EditPatch, request_id: str) -> EditPatch | None:
        """``patch`` as if one of its requests had never been in it; None when this method cannot make that.

        Called by ``editor.drop`` and ``kedit patch drop``, once for each request to drop, with the model on the base of
        the patch, the patch's parents on it and nothing else, ``context.hparams`` and ``context.seed`` as the patch was
        made with, and ``context.requests`` all that were in it. ``request_id`` is the ``id`` of one of its requests;
        equal requests have one id and go together. The result holds the other requests in their order, and stands on
        the same parents: build it with ``context.new_patch``, or change ``patch`` with ``attrs.evolve``. A patch that
        was joined from rounds has their states in ``patch.states()``; it is for the method to say whether it can take
        a request out of it. The model must leave this call exactly as it entered."""


def public_hooks() -> tuple[str, ...]:
    """Names of all hooks, in the order of :class:`HookSpecs`."""
    return tuple(name for name in vars(HookSpecs) if not name.startswith("_"))
