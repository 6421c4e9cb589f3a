"""Training an editor from start to finish, as a function."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import evolve, frozen

from kedit_core.contract import MethodInfo
from kedit_core.editing import Editor, EditWarning
from kedit_core.editing.guard import left_as_found
from kedit_core.editing.progress import Progress, silent
from kedit_core.editing.rounds import own_settings
from kedit_core.editing.settings import Overrides, Settings, check_options, resolve_settings
from kedit_core.errors import InputError
from kedit_core.evaluation.efficiency import measured
from kedit_core.forward import evaluating
from kedit_core.forward import frozen as frozen_parameters
from kedit_core.hparams import Resolved
from kedit_core.requests import EditRequest, check_requests
from kedit_core.training.base import BaseTrainer
from kedit_core.training.basis import describe_base
from kedit_core.training.context import TrainingContext
from kedit_core.training.folder import check_place
from kedit_core.training.loop import Loop, Outcome
from kedit_core.training.metrics import Metrics
from kedit_core.training.processes import Processes
from kedit_core.training.records import case_of, split
from kedit_core.training.settings import TrainingHyperParams
from kedit_core.training.store import Store
from kedit_core.training.writing import write_editor

_SAMPLING = 0.05  # seconds between two looks at the memory in use
_LIBRARIES = ("kedit-core", "torch", "transformers")


@frozen(kw_only=True)
class Training:
    """A finished training.

    Attributes:
        folder: the editor, with the best parameters. state: its state.json.
        outcome: how it went. records, validation: how many requests there were.
        warnings: what the trainer told of data and settings.
    """

    folder: Path
    state: Mapping[str, Any]
    outcome: Outcome
    records: int
    validation: int
    warnings: tuple[EditWarning, ...] = ()

    @property
    def cost(self) -> Mapping[str, Any]:
        """What it took: ``seconds``, ``seconds_per_iteration``, ``peak_memory_bytes``, ``editor_bytes`` and more."""
        found: Mapping[str, Any] = self.state["cost"]
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**attrs.asdict(self), "folder": str(self.folder)}


def train(
    editor: Editor,
    requests: Sequence[EditRequest],
    folder: Path | str,
    hparams: Settings = None,
    *,
    validation: Sequence[EditRequest] | None = None,
    held_out: float = 0.1,
    overrides: Overrides = (),
    preset: Path | str | None = None,
    options: Mapping[str, Any] | None = None,
    resume: bool = False,
    anew: bool = False,
    processes: Processes | None = None,
    tensorboard: bool = False,
    progress: Progress = silent,
) -> Training:
    """Train the editor that a method's edits need, and write it to a folder.

    The model is left as it was found. Checkpoints and measurements go to ``FOLDER.training`` beside the folder.

    Args:
        editor: on the base, with the method; its seed and resources count. No patch may be on the model.
        requests: the training set.
        hparams, overrides, preset: settings of the training, given as an Editor's are (the method's
            ``MethodInfo.training``).
        validation: requests of other cases to validate on; by default the share ``held_out`` of the cases.
        options: for the trainer, among the method's ``training_options``.
        resume: go on with a training of the same settings and data that was interrupted.
        anew: start over where an unfinished training stands.
        processes: those that train together; this one alone by default.
        tensorboard: write measurements for TensorBoard too.

    Raises:
        InputError, RequestError, HyperParamsError: what was given cannot be used; nothing was trained.
        MethodError: it diverged, or the trainer does not keep its contract.
    """
    folder, processes = Path(folder), processes or Processes()
    settings = training_settings(editor, hparams, overrides, preset)
    kept, held = (requests, validation) if validation is not None else split(requests, held_out, editor.seed)
    context = training_context(editor, settings.hparams, kept, held, options=options, processes=processes)
    check_output(folder, resume=resume, anew=anew)
    store = Store(_beside(folder))
    base = describe_base(editor.model, editor.tokenizer, editor.name, editor.revision)
    context.progress = progress if processes.first else silent
    with _at_rest(context), measured(editor.model, _SAMPLING) as found:
        trainer = editor.host.make_trainer(context, settings.hparams)
        origin = _origin(context, trainer, base, settings.hparams)
        if processes.first:
            store.begin(anew=not resume)
        processes.wait()
        with closing(Metrics(store.folder if processes.first else None, tensorboard=tensorboard)) as metrics:
            loop: Loop[Any] = Loop(
                trainer,
                store,
                origin,
                seed=editor.seed,
                processes=processes,
                metrics=metrics,
                progress=context.progress,
            )
            if resume:
                loop.resume()
            outcome = loop.run()
        tensors, config = trainer.editor()
    state = {
        **origin,
        "config": dict(config),
        "trained": _trained(outcome, settings.hparams),
        "cost": _cost(outcome, trainer, found.peak.bytes, processes),
        "versions": {name: version(name) for name in _LIBRARIES},
    }
    written = write_editor(folder, tensors, state, trainer.write_files) if processes.first else {}
    return Training(
        folder=folder,
        state=processes.told(written),
        outcome=outcome,
        records=len(kept),
        validation=len(held),
        warnings=tuple(context.warnings),
    )


def training_settings(
    editor: Editor, hparams: Settings = None, overrides: Overrides = (), preset: Path | str | None = None
) -> Resolved[Any]:
    """Settings of a method's training: defaults, then preset, then what was given, then overrides.

    Raises:
        InputError: the Editor has no method, or one that needs no training.
        HyperParamsError: faults of the settings, all at once.
    """
    method = trained_method(editor.info)
    described = evolve(method, hparams=str(method.training), presets=method.training_presets)
    settings = resolve_settings(editor.catalogue, described, editor.adapter.shape, hparams, overrides, preset)
    if settings is None or not isinstance(settings.hparams, TrainingHyperParams):
        raise InputError(
            f"the training settings of method {method.name!r} ({method.training}) are no TrainingHyperParams; its "
            "author must build them on that class"
        )
    return settings


def trained_method(method: MethodInfo | None) -> MethodInfo:
    """A method whose editor is trained. Raises InputError for another, or none."""
    if method is None:
        raise InputError("there is no method to train an editor for; name one with --method or Editor(method=...)")
    if method.training is None:
        raise InputError(f"method {method.name!r} needs no training: edit with it right away (kedit edit)")
    return method


def training_context(
    editor: Editor,
    hparams: TrainingHyperParams,
    requests: Sequence[EditRequest],
    validation: Sequence[EditRequest] = (),
    *,
    options: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
) -> TrainingContext:
    """What :func:`train` hands to a method's trainer: also for trying out a trainer by hand.

    Raises:
        RequestError: faults of the requests.
        InputError: a case in both sets, patches on the model, or options that the trainer does not have.
    """
    method = trained_method(editor.info)
    for given in (requests, validation):
        check_requests(given, needs_subject=method.needs_subject)
    if shared := sorted({case_of(each) for each in requests} & {case_of(each) for each in validation}):
        raise InputError(f"the case {shared[0]!r} is in the training set and in the validation; take it out of one")
    if editor.stack.patches:
        raise InputError("an editor is trained for a base, and there are patches on this model; take them off first")
    check_options(evolve(method, options=method.training_options), options or {})
    plain = editor.context()
    fields = [each.name for each in attrs.fields(type(plain)) if each.init]
    known: dict[str, Any] = {name: getattr(plain, name) for name in fields}
    return TrainingContext(
        **{
            **known,
            "hparams": hparams,
            "requests": tuple(requests),
            "validation": tuple(validation),
            "options": dict(options or {}),
            "processes": processes or Processes(),
        }
    )


@contextmanager
def _at_rest(context: TrainingContext) -> Iterator[None]:
    """The base frozen and in eval mode, and checked to be as it was afterwards."""
    who = f"the trainer of method {context.method.name if context.method else None!r}"
    with (
        left_as_found(context.model, who),
        own_settings(context),
        frozen_parameters(context.model),
        evaluating(context.model),
        torch.enable_grad(),
    ):
        yield


def check_output(folder: Path, *, resume: bool, anew: bool) -> None:
    """Refuse a folder where something else stands, or where an unfinished training would be lost (InputError)."""
    check_place(folder)
    store = Store(_beside(folder))
    standing = store.standing()
    if standing is None or resume or anew or standing.get("finished"):
        return
    raise InputError(
        f"{store.folder} holds a training that was interrupted at iteration {standing['counters']['iteration']}; go on "
        "with it (--resume), or start over (--anew)"
    )


def _beside(folder: Path) -> Path:
    """Where an editor's checkpoints and measurements are."""
    return folder.with_name(f"{folder.name}.training")


def _origin(
    context: TrainingContext, trainer: BaseTrainer[Any], base: Mapping[str, Any], hparams: TrainingHyperParams
) -> dict[str, Any]:
    """What the editor is made from; also what a run must share with one that it resumes. No path: digests."""
    return {
        "method": {
            "name": context.method.name if context.method else None,
            "distribution": context.method_distribution,
            "version": context.method_version,
        },
        "base": dict(base),
        "hparams": hparams.lasting(),
        "data": {"training": _data(context.requests), "validation": _data(context.validation)},
        "resources": context.resources_used,
        "origin": dict(trainer.origin()),
        "seed": context.seed,
    }


def _data(requests: Sequence[EditRequest]) -> dict[str, Any]:
    rows = [attrs.asdict(request) for request in requests]
    text = json.dumps(rows, sort_keys=True, ensure_ascii=False)
    return {"records": len(requests), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _trained(outcome: Outcome, hparams: TrainingHyperParams) -> dict[str, Any]:
    return {
        "iterations": outcome.iterations,
        "updates": outcome.updates,
        "best_iteration": outcome.best_iteration,
        "key": hparams.early_stop_key,
        "best": outcome.best,
        "values": dict(outcome.best_values),
        "stopped_early": outcome.stopped_early,
        "skipped": outcome.skipped,
    }


def _cost(outcome: Outcome, trainer: BaseTrainer[Any], peak: int, processes: Processes) -> dict[str, Any]:
    """What the training took, of the first process; the editor's size is added when it is written."""
    return {
        "seconds": outcome.seconds,
        "seconds_per_iteration": outcome.step_seconds / outcome.iterations if outcome.iterations else None,
        "peak_memory_bytes": peak,
        "parameters": sum(tensor.numel() for tensor in trainer.parameters().values()),
        "device": str(next(iter(trainer.parameters().values())).device),
        "processes": processes.count,
    }
