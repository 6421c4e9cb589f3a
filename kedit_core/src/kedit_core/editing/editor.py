"""The Editor: prepare, compute, apply, evaluate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, overload

from torch import nn

from kedit_core.contract import WAYS, Installed, MethodInfo, Scenario, Way
from kedit_core.editing import progress as _progress
from kedit_core.editing.base import BaseReading
from kedit_core.editing.cache import cache_folder
from kedit_core.editing.cases import Known, evaluate_cases, run_cases
from kedit_core.editing.choosing import decided
from kedit_core.editing.context import EditContext, EditWarning, seeded
from kedit_core.editing.core_plugin import CorePlugin
from kedit_core.editing.dropping import base_name, drop, settings_of
from kedit_core.editing.facts import warn_of_contradictions
from kedit_core.editing.planning import what_it_takes
from kedit_core.editing.result import EditResult
from kedit_core.editing.rounds import compute_round, run_rounds, settle, take_off, undone_on_failure
from kedit_core.editing.scenarios import Round, as_requests, cases, choose_scenario, rounds
from kedit_core.editing.settings import Settings, check_options, resolve_settings
from kedit_core.editing.sources import describe_model, load_model, resolve_model
from kedit_core.editing.stacks import chosen_dtype, put_on, write_stack
from kedit_core.errors import InputError
from kedit_core.evaluation import (
    Answers,
    Evaluation,
    combine,
    resolve_metrics,
    resolve_protocols,
    run_manifest,
)
from kedit_core.forward import ForwardTools, TokenBoundary
from kedit_core.hparams import Resolved
from kedit_core.models import AdapterRegistry
from kedit_core.patches import EditPatch, PatchStack
from kedit_core.patches.trust import Trust
from kedit_core.plugins import Catalogue, Host
from kedit_core.requests import EditRequest
from kedit_core.stacks.file import StackFile, is_stack_file


class Editor:
    """Edits one model with one method, and puts patches on it and takes them off.

    Args:
        model, tokenizer: a transformers model and its tokenizer. The model is edited in place; ``restore()`` gives it
            back bit for bit.
        method: name of an installed method, or None to only apply, generate and evaluate.
        hparams: settings over the method's defaults and preset: an instance of its HyperParams (taken whole), a
            mapping, or the path of a YAML or JSON file. ``overrides`` (mapping or ``key=value`` strings) win.
        preset: a preset file to use instead of the one that matches the model.
        seed: everything random in an edit follows from it.
        way: ``merged`` into the weight or ``attached`` as a side branch; None lets the stack choose.
        name, revision: Hub id or registered name of the model, recorded in patches.
        options: for the method, beside hparams (``stats``, ``corpus``, ...). resources: role -> path.
        plugins: further plugin objects for this Editor alone.
        keep_base_answers: keep what the base answers in the cache folder, for other runs on the same weights.

    Raises:
        UnknownNameError, HyperParamsError, UnsupportedModelError: before anything is done.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        method: str | None = None,
        hparams: Settings = None,
        *,
        overrides: Mapping[str, Any] | Sequence[str] = (),
        preset: Path | str | None = None,
        seed: int = 0,
        way: Way | None = None,
        name: str | None = None,
        revision: str | None = None,
        options: Mapping[str, Any] | None = None,
        resources: Mapping[str, Path | str] | None = None,
        plugins: Sequence[object] = (),
        catalogue: Catalogue | None = None,
        cache: Path | str | None = None,
        memory_budget: int = 2 << 30,
        progress: _progress.Progress = _progress.silent,
        keep_base_answers: bool = False,
    ) -> None:
        if way is not None and way not in WAYS:
            raise InputError(f"there is no way {way!r}; choose one of {', '.join(WAYS)}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 63:
            raise InputError(f"the seed is {seed!r}; give a whole number from 0 to 2**63 - 1")
        self.tokenizer = tokenizer
        self.catalogue = catalogue or Catalogue.installed()
        self.info: MethodInfo | None = self.catalogue.method(method) if method is not None else None
        self.host = Host(self.catalogue, self.info, extra=plugins)
        self.host.register(CorePlugin(), name="core", distribution="kedit-core")
        self.adapter = AdapterRegistry(self.host.adapters()).for_model(model)
        # what wraps a model (peft) has names of its own; patches speak of the model inside
        self.model: nn.Module = self.adapter.model
        self.tokens = TokenBoundary(tokenizer, encoder_decoder=self.adapter.is_encoder_decoder)
        self.stack = PatchStack.of(self.model, catalogue=self.catalogue, view=self.adapter)
        self.settings: Resolved[Any] | None = resolve_settings(
            self.catalogue, self.info, self.adapter.shape, hparams, overrides, preset
        )
        fast = bool(getattr(self.settings.hparams, "fast", True)) if self.settings else True
        self.forward = ForwardTools(
            self.model,
            self.adapter,
            self.tokens,
            fast=fast,
            memory_budget=memory_budget,
            scope=self.stack.scope,
        )
        self.seed, self.way = seed, way
        self.name, self.revision = name, revision
        check_options(self.info, options or {})
        self.options, self.resources = dict(options or {}), {k: Path(v) for k, v in (resources or {}).items()}
        self.cache = Path(cache) if cache is not None else cache_folder()
        self.memory_budget, self.progress = memory_budget, progress
        self._previous: EditPatch | None = None
        self._looked = False
        base = Answers(self.model, self.adapter, self.tokens, stack=self.stack, base=True)
        self._read = BaseReading(self.stack, base, self.cache if keep_base_answers else None)

    def __repr__(self) -> str:
        method = "no method" if self.info is None else self.info.name
        count = len(self.stack.patches)
        return f"<Editor: {method} on {type(self.model).__name__}, {count} patch{'es' * (count != 1)} on it>"

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        method: str | None = None,
        hparams: Settings = None,
        *,
        dtype: Any = None,
        device: Any = None,
        revision: str | None = None,
        catalogue: Catalogue | None = None,
        **settings: Any,
    ) -> Editor:
        """An Editor on a model loaded by registered name, local folder or Hub id; dtype as stored unless given.

        A path that ends in ``.yaml`` is a stack file; see :meth:`from_stack`, whose arguments may then be given, too.
        The method's name is checked before the model is loaded. Other arguments are those of :class:`Editor`.
        """
        if not isinstance(model, str | Path):
            raise InputError(
                f"from_pretrained takes a name or a folder, and got a {type(model).__name__}; for a model at hand "
                "write Editor(model, tokenizer, method)"
            )
        catalogue = catalogue or Catalogue.installed()
        if method is not None:
            catalogue.method(method)
        if is_stack_file(model):
            if revision is not None:
                raise InputError(f"{model} is a stack file, which says the revision itself; leave the revision out")
            return cls.from_stack(model, method, hparams, dtype=dtype, device=device, catalogue=catalogue, **settings)
        source = resolve_model(str(model), Host(catalogue), revision)
        loaded, tokenizer = load_model(source, dtype=dtype, device=device)
        return cls(
            loaded,
            tokenizer,
            method,
            hparams,
            name=source.name,
            revision=source.revision,
            catalogue=catalogue,
            **settings,
        )

    @classmethod
    def from_stack(
        cls,
        path: str | Path,
        method: str | None = None,
        hparams: Settings = None,
        *,
        dtype: Any = None,
        device: Any = None,
        force: bool = False,
        allow_unverified: bool = False,
        trust: Trust | None = None,
        on_note: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> Editor:
        """An Editor on the base of a stack file, with its patches on (docs/stacks.md).

        Every patch file is read and checked against its id before the model is loaded. Afterwards the weights are held
        against the digest that the file records, where it does.

        Args:
            dtype: as the stack says unless given; another one is refused where a digest is recorded.
            force, allow_unverified: as for :meth:`apply`; with ``force`` other weights are only noted.
            trust: whose signatures the patches must have; see :meth:`EditPatch.load`.
            on_note: called when the weights differ and it may be by the rounding of another torch or processor.
            settings: those of :class:`Editor`; ``resources`` are for the patches, too.

        Raises:
            InputError, FaultsError: something is wrong with the file, or a patch is missing or another one.
            UntrustedPatchError: a patch is not signed as ``trust`` asks.
            BaseMismatchError: another base, or other weights than it records.
            StackOrderError, RequirementError: a patch cannot be put on.
        """
        stack = StackFile.load(path)
        patches, dtype = stack.read(trust=trust), chosen_dtype(stack, dtype)
        editor = cls.from_pretrained(
            stack.model, method, hparams, dtype=dtype, device=device, revision=stack.revision, **settings
        )
        put_on(editor, stack, patches, force=force, allow_unverified=allow_unverified, on_note=on_note)
        return editor

    @classmethod
    def for_patch(
        cls, patch: EditPatch, model: str | Path | None = None, *, catalogue: Catalogue | None = None, **settings: Any
    ) -> Editor:
        """An Editor like the one that made a patch: its method, settings (whole) and seed, on its base.

        Args:
            model: by default what the patch names as its base; ``settings`` are those of :meth:`from_pretrained`.

        Raises:
            InputError: the patch does not name its base, and no model is given.
            UnknownNameError, HyperParamsError: its method is not installed, or has no such settings any more.
        """
        catalogue = catalogue or Catalogue.installed()
        hparams = settings_of(patch, catalogue)
        if model is None:
            model = base_name(patch)
            settings = {"revision": patch.base.revision, **settings}
        return cls.from_pretrained(
            model, patch.method.name, hparams, seed=patch.seed or 0, catalogue=catalogue, **settings
        )

    # ------------------------------------------------------------------ editing
    def edit(
        self,
        requests: EditRequest | Sequence[EditRequest],
        *,
        scenario: str | None = None,
        batch_size: int = 1,
        evaluate: bool = True,
        protocols: Sequence[str] = ("generate",),
        metrics: Sequence[str] = (),
        way: Way | None = None,
        on_patch: Callable[[EditPatch, Round], None] | None = None,
    ) -> EditResult:
        """Change what the model believes.

        After ``batch`` and ``sequential`` the edit is on the model as one patch; after ``single`` the model is as
        before. A failure at any point, KeyboardInterrupt too, leaves the model as it was found.

        Args:
            scenario: ``single``, ``batch`` or ``sequential``; by default batch if the method can, else sequential.
            batch_size: requests per round of ``sequential``.
            evaluate: measure the edit with ``protocols`` (names or tags; see docs/evaluation.md).
            metrics: groups of metrics that are measured on request only (``fluency``, ...; `kedit metrics` lists them).
            on_patch: called with every patch and its requests as soon as it is computed (to save it, say).

        Raises:
            RequestError: something is wrong with the requests; nothing was started.
            MethodError, PluginError: the method failed.
        """
        started = time.perf_counter()
        method = self._method()
        if way is not None and way not in WAYS:
            raise InputError(f"there is no way {way!r}; choose one of {', '.join(WAYS)}")
        given = as_requests(requests, "edit")
        chosen = choose_scenario(scenario, method)
        context = self.context(
            scenario=chosen,
            way=way or self.way,
            protocols=protocols if evaluate else (),
            metrics=metrics,
            # what is computed on this very model is for it, also where its weights cannot be hashed
            options={**self.options, "allow_unverified": True},
        )
        prepared = tuple(self.host.prepare_requests(context, given))
        context.requests = prepared
        self._choose(context)
        if chosen != "single":
            warn_of_contradictions(context, prepared)
        groups = cases(prepared) if chosen == "single" else [prepared]
        plan = [(group, rounds(group, chosen, batch_size, method)) for group in groups]
        with undone_on_failure(self.stack):
            if evaluate:
                self._read.ahead(context, prepared)
            if chosen == "single":
                measure = (lambda case, known: self._measure(context, case, {}, known)) if evaluate else None
                patches, parts = run_cases(context, plan, measure, on_patch, self._answers())
                joined = patches[0] if len(patches) == 1 else None
                evaluation = combine(parts, manifest=self._manifest(prepared)) if evaluate else None
            else:
                patches = run_rounds(context, plan[0][1], on_patch)
                joined = settle(context, patches)
                evaluation = self._measure(context, prepared, self._manifest(prepared)) if evaluate else None
            result = EditResult(
                scenario=chosen,
                way=context.way or self.way or "merged",
                requests=prepared,
                patches=patches,
                joined=joined,
                hparams=self.settings,
                evaluation=evaluation,
                warnings=tuple(context.warnings),
                seconds=time.perf_counter() - started,
            )
            self._previous = joined if chosen != "single" else self._previous
            return result

    def prepare(self, requests: EditRequest | Sequence[EditRequest]) -> tuple[EditRequest, ...]:
        """Requests as the method takes them, checked as :meth:`edit` checks them, and nothing else.

        Raises RequestError when something is wrong with them.
        """
        return tuple(self.host.prepare_requests(self.context(way=self.way), as_requests(requests, "prepare")))

    def compute(self, requests: EditRequest | Sequence[EditRequest]) -> EditPatch:
        """The patch of one round, computed and not put on the model.

        Raises as :meth:`edit`; also InputError for several requests when the method edits one at a time.
        """
        given = as_requests(requests, "compute")
        method = self._method()
        if len(given) > 1 and "batch" not in method.scenarios:
            raise InputError(f"method {method.name!r} edits one request at a time; call edit() for several")
        context = self.context(scenario="batch", way=self.way, protocols=())
        context.requests = tuple(self.host.prepare_requests(context, given))
        self._choose(context)
        return compute_round(context, tuple(context.requests))

    def plan(
        self, requests: EditRequest | Sequence[EditRequest], *, scenario: str | None = None, batch_size: int = 1
    ) -> dict[str, Any]:
        """What :meth:`edit` would do and take, without doing it: JSON-able.

        Beside what is said in words of their own: from the method ``places``, ``seconds`` (without the evaluation),
        ``memory_bytes`` (beside the model's), ``patch_bytes``, each None where it does not tell, and ``notes``; from
        the core ``model_bytes``, the ``device`` and ``available_bytes`` there, and whether the edit ``fits``.
        """
        method = self._method()
        given = as_requests(requests, "plan")
        chosen = choose_scenario(scenario, method)
        context = self.context(scenario=chosen, way=self.way, protocols=())
        prepared = tuple(self.host.prepare_requests(context, given))
        groups = cases(prepared) if chosen == "single" else [prepared]
        calls = [call for group in groups for call in rounds(group, chosen, batch_size, method)]
        context.requests = prepared
        self._choose(context)
        settings = cast(Resolved[Any], self.settings)
        return {
            "model": describe_model(self.model, self.adapter, self.name, self.revision),
            "method": method.name,
            "scenario": chosen,
            "requests": len(prepared),
            "rounds": len(calls),
            "operations": sorted(method.operations),
            **what_it_takes(context, settings.hparams),
            "hparams": settings.to_dict(),
        }

    # ------------------------------------------------------------------ patches
    def drop(
        self,
        patch: EditPatch,
        case_id: str,
        *,
        allow_unverified: bool = False,
        on_warning: Callable[[EditWarning], None] | None = None,
    ) -> EditPatch:
        """The patch as if one of its facts had never been in it; a new patch, on no model yet.

        The Editor must be of the method, the settings and the seed that made the patch (:meth:`for_patch`), and the
        patch's parents must be on the model. It is computed with these alone on the model: whatever else is on it, the
        patch itself too, is set aside meanwhile, and all is as it was afterwards.

        Args:
            case_id: all requests of this case; or ``#3``, the third request (``3`` will do when no request has a case
                id); or the id of a request.
            allow_unverified: also for weights that cannot be verified (quantised).
            on_warning: called with what the user should know of the new patch.

        Raises:
            InputError: no such request, nothing would remain, the facts are private, another method, settings or seed,
                or a method that cannot.
            BaseMismatchError, StackOrderError: another base; parents that are not on the model.
            MethodError: the method could not take it out.
        """
        context = self.context(way=self.way)
        dropped = drop(context, patch, case_id, allow_unverified)
        if on_warning is not None:
            for warning in context.warnings:
                on_warning(warning)
        return dropped

    def apply(
        self,
        patch: EditPatch,
        *,
        way: Way | None = None,
        force: bool = False,
        allow_unverified: bool = False,
        resources: Mapping[str, Path | str] | None = None,
    ) -> Installed:
        """Put a patch on the model.

        Raises:
            BaseMismatchError: these are not the weights it was made for (``force`` is your own decision).
            StackOrderError, StackDisturbedError, RequirementError: nothing was changed.
        """
        options = {**self.options, "force": force, "allow_unverified": allow_unverified}
        context = self.context(scenario="batch", way=way or self.way, protocols=(), options=options)
        context.resources = {**self.resources, **{k: Path(v) for k, v in (resources or {}).items()}}
        return self.host.apply_to_model(context, patch, context.way)

    def remove(self, patch: EditPatch) -> None:
        """Take a patch off the model, whatever its place on the stack; the rest stays bit for bit what it would be.

        Raises:
            StackOrderError: it is not on the model.
            StackDisturbedError, MethodError: it could not be taken off; nothing was changed.
        """
        take_off(self.context(scenario="batch", way=None, protocols=()), patch)

    def restore(self) -> None:
        """Take every patch off: the model is the very one it was at first."""
        for entry in reversed(self.stack.patches):
            self.remove(entry.patch)
        self._previous = None

    def apply_stack(
        self,
        stack: StackFile | str | Path,
        *,
        force: bool = False,
        allow_unverified: bool = False,
        trust: Trust | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> tuple[Installed, ...]:
        """Put all patches of a stack file on the model, which has none, or leave it as it was found.

        The base that the file names is not looked at; the patches know theirs. Arguments and errors are those of
        :meth:`from_stack`; also StackOrderError when the model has patches on it.
        """
        read = stack if isinstance(stack, StackFile) else StackFile.load(stack)
        patches = read.read(trust=trust)
        return put_on(self, read, patches, force=force, allow_unverified=allow_unverified, on_note=on_note)

    def save_stack(self, path: str | Path, *, base: str | None = None) -> StackFile:
        """Write what is on the model as a stack file, and its patches into the folder ``patches`` beside it.

        Args:
            base: how to name the base: a registered name, a Hub id or a folder. By default what the model was loaded
                by; a model from a folder has no name of its own.

        Raises:
            InputError: the base has no name.
            StackOrderError: a patch whose parent was taken off, so that the file could not be applied.
            KeditError: it cannot be written.
        """
        return write_stack(self, path, base)

    @contextmanager
    def applied(self, patch: EditPatch, **settings: Any) -> Iterator[Installed]:
        """A patch on the model for the length of a block; arguments are those of :meth:`apply`."""
        installed = self.apply(patch, **settings)
        try:
            yield installed
        finally:
            if any(entry.patch.id == patch.id for entry in self.stack.patches):
                self.remove(patch)

    # ------------------------------------------------------------------ reading
    @overload
    def generate(self, prompts: str, *, max_new_tokens: int = ...) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompts: Sequence[str], *, max_new_tokens: int = ...) -> list[str]: ...
    def generate(self, prompts: str | Sequence[str], *, max_new_tokens: int = 50) -> str | list[str]:
        """Greedy continuations of one prompt or of many, through every patch on the stack, routers too."""
        many = [prompts] if isinstance(prompts, str) else list(prompts)
        texts = self._answers().raw_generate(many, max_new_tokens=max_new_tokens)
        return texts[0] if isinstance(prompts, str) else texts

    @overload
    def answer(self, prompts: str) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def answer(self, prompts: Sequence[str]) -> list[str]: ...
    def answer(self, prompts: str | Sequence[str]) -> str | list[str]:
        """The model's own answers: greedy, cut at the end of the sentence, as protocol ``generate`` reads them."""
        many = [prompts] if isinstance(prompts, str) else list(prompts)
        texts = self._answers().generate(many)
        return texts[0] if isinstance(prompts, str) else texts

    def evaluate(
        self,
        requests: EditRequest | Sequence[EditRequest],
        *,
        protocols: Sequence[str] = ("generate",),
        metrics: Sequence[str] = (),
    ) -> Evaluation:
        """Measure the model as it is now (with the patches on it) against itself without any patch.

        Arguments are those of :meth:`edit`.

        Raises StackDisturbedError when something else changed what the patches had put there.
        """
        self.stack.check()
        given = as_requests(requests, "evaluate")
        scenario: Scenario = "sequential" if len(self.stack.patches) > 1 else "batch"
        context = self.context(scenario=scenario, way=self.way, protocols=protocols, metrics=metrics)
        prepared = tuple(self.host.prepare_requests(context, given))
        context.requests = prepared
        self._read.ahead(context, prepared)
        return self._measure(context, prepared, self._manifest(prepared))

    def read_base(
        self,
        requests: EditRequest | Sequence[EditRequest],
        *,
        protocols: Sequence[str] = ("generate",),
        metrics: Sequence[str] = (),
    ) -> None:
        """Read ahead what evaluating these requests will ask of the model without patches, all in few batches.

        Arguments are those of :meth:`edit`. Worth calling before many edits and evaluations of parts of them.
        """
        given = as_requests(requests, "read")
        context = self.context(way=self.way, protocols=protocols, metrics=metrics)
        context.requests = tuple(self.host.prepare_requests(context, given))
        self._read.ahead(context, context.requests)

    def evaluate_cases(
        self,
        cases: Sequence[tuple[EditPatch, EditRequest | Sequence[EditRequest]]],
        *,
        protocols: Sequence[str] = ("generate",),
        metrics: Sequence[str] = (),
        way: Way | None = None,
    ) -> Evaluation:
        """Measure patches that were made apart, each alone on the model: as ``edit(scenario="single")`` does.

        Args:
            cases: patches of edits, and the requests with the probes that judge each; other arguments are those of
                :meth:`edit`.

        Raises as :meth:`apply` and :meth:`evaluate`; the model is afterwards as it was.
        """
        self.stack.check()
        context = self.context(scenario="single", way=way or self.way, protocols=protocols, metrics=metrics)
        made = [(patch, tuple(self.host.prepare_requests(context, as_requests(r, "evaluate")))) for patch, r in cases]
        every = tuple(request for _, requests in made for request in requests)
        as_requests(every, "evaluate")
        with undone_on_failure(self.stack):
            self._read.ahead(context, every)
            found = evaluate_cases(
                context, made, lambda case, known: self._measure(context, case, {}, known), self._answers()
            )
        return combine(found, manifest=self._manifest(every))

    # ------------------------------------------------------------------ inside
    def _choose(self, context: EditContext) -> None:
        """Once: let the method look at the model for settings that only follow from its depth."""
        if not self._looked and self.settings is not None and self.settings.undecided:
            self._looked = True
            self.settings = decided(context, self.settings)
            context.hparams = self.settings.hparams

    def _measure(
        self,
        context: EditContext,
        requests: Sequence[EditRequest],
        manifest: dict[str, Any],
        known: Known | None = None,
    ) -> Evaluation:
        edited = self._answers()
        if known is not None:
            edited.supply(known)
        metrics = self.host.evaluate(context, requests, self._read.answers, edited)
        return Evaluation(metrics=metrics, manifest=manifest)

    def _answers(self) -> Answers:
        return Answers(self.model, self.adapter, self.tokens, stack=self.stack)

    def _live_previous(self) -> EditPatch | None:
        """This Editor's last patch, if it is still on the model."""
        live = {entry.patch.id for entry in self.stack.patches}
        return self._previous if self._previous is not None and self._previous.id in live else None

    def context(
        self,
        *,
        scenario: Scenario = "batch",
        way: Way | None = None,
        protocols: Sequence[str] = (),
        metrics: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> EditContext:
        """A context as a method gets it: for tools that use a method's parts (statistics, keys) without an edit."""
        self._read.follow()
        found = self.catalogue.find("kedit.methods", self.info.name) if self.info else None
        return EditContext(
            model=self.model,
            tokenizer=self.tokenizer,
            adapter=self.adapter,
            forward=self.forward,
            tokens=self.tokens,
            stack=self.stack,
            host=self.host,
            method=self.info,
            method_distribution=found.distribution if found else None,
            method_version=found.version if found else None,
            hparams=self.settings.hparams if self.settings else None,
            model_name=self.name,
            revision=self.revision,
            seed=self.seed,
            generator=seeded(self.seed),
            previous=self._live_previous(),
            options=self.options if options is None else options,
            resources=self.resources,
            protocols=resolve_protocols(protocols),
            metrics=frozenset(resolve_metrics(metrics, self.host.metrics())),
            scenario=scenario,
            way=way,
            memory_budget=self.memory_budget,
            cache=self.cache,
            progress=self.progress,
            memo=self._read.memo,
        )

    def _manifest(self, requests: Sequence[EditRequest]) -> dict[str, Any]:
        return {
            **run_manifest(self.model, seed=self.seed, requests=requests, model_digest=self._read.digest()),
            **describe_model(self.model, self.adapter, self.name, self.revision),
            "method": self.info.name if self.info else None,
            "hparams": self.settings.hparams.to_dict() if self.settings else {},
            "patches": [entry.patch.id for entry in self.stack.patches],
        }

    def _method(self) -> MethodInfo:
        if self.info is None:
            known = ", ".join(sorted(self.catalogue.methods())) or "none is installed"
            raise InputError(f"this Editor has no method, so it can only apply and read; give method=... ({known})")
        return self.info
