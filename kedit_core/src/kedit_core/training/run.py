"""Training an editor from start to finish, as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import evolve, frozen
from torch import nn

from kedit_core.contract import MethodInfo
from kedit_core.editing import Editor, EditWarning
from kedit_core.editing.guard import left_as_found
from kedit_core.editing.progress import Progress, silent
from kedit_core.editing.rounds import own_settings
from kedit_core.editing.settings import Overrides, Settings, check_options, resolve_settings
from kedit_core.errors import InputError
from kedit_core.evaluation.efficiency import Peak, devices_of, measured
from kedit_core.forward import evaluating
from kedit_core.forward import frozen as frozen_parameters
from kedit_core.hparams import Resolved
from kedit_core.requests import EditRequest, check_requests
from kedit_core.training.basis import describe_base
from kedit_core.training.context import TrainingContext
from kedit_core.training.loop import Loop
from kedit_core.training.metrics import Metrics, check_tensorboard
from kedit_core.training.outcome import Outcome
from kedit_core.training.place import beside, check_output
from kedit_core.training.processes import Processes
from kedit_core.training.records import case_of, none_usable, split, usable
from kedit_core.training.settings import EditTrainingHyperParams, TrainingHyperParams
from kedit_core.training.store import Store
from kedit_core.training.telling import cost_of, origin_of, plain, trained
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
        """JSON-able; what is no number is None."""
        found: dict[str, Any] = plain({**attrs.asdict(self), "folder": str(self.folder)})
        return found


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
    kept, held = requests, validation
    if held is None:
        kept, held = split(requests, held_out, editor.seed, usable(requests, settings.hparams))
    context = training_context(editor, settings.hparams, kept, held, options=options, processes=processes)
    check_output(folder, resume=resume, anew=anew)
    if tensorboard:
        check_tensorboard()
    store = Store(beside(folder))
    processes.wait()  # until all have looked: from here on the first one writes
    base = describe_base(editor.model, editor.tokenizer, editor.name, editor.revision)
    context.progress = progress if processes.first else silent
    with _at_rest(context), measured(editor.model, _SAMPLING) as found:
        trainer = editor.host.make_trainer(context, settings.hparams)
        origin = origin_of(context, trainer, base, settings.hparams)
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
                memory=_memory(editor.model, found.peak),
            )
            if resume:
                loop.resume()
            outcome = loop.run()
        tensors, config = trainer.editor()
    state = {
        **origin,
        "config": dict(config),
        "trained": trained(outcome, settings.hparams),
        "cost": cost_of(outcome, trainer, processes),
        "versions": {name: version(name) for name in _LIBRARIES},
    }
    written: dict[str, Any] = {}
    if processes.first:
        written = write_editor(folder, tensors, state, trainer.write_files)
        store.note_written()
    if not outcome.updates:
        context.warn(
            "no_update", None, f"give more iterations than accumulate ({settings.hparams.accumulate})",
            "the optimiser took no step, so the editor is as it was made",
        )  # fmt: skip
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
    for use, given in (("can be trained on", requests), ("can be validated on", validation)):
        if isinstance(hparams, EditTrainingHyperParams) and given and not any(usable(given, hparams)):
            raise none_usable(len(given), use, hparams)
    if editor.stack.patches:
        raise InputError("an editor is trained for a base, and there are patches on this model; take them off first")
    check_options(evolve(method, options=method.training_options), options or {})
    own = editor.context()
    fields = [each.name for each in attrs.fields(type(own)) if each.init]
    known: dict[str, Any] = {name: getattr(own, name) for name in fields}
    context = TrainingContext(
        **{
            **known,
            "hparams": hparams,
            "requests": tuple(requests),
            "validation": tuple(validation),
            "options": dict(options or {}),
            "processes": processes or Processes(),
        }
    )
    if left := sum(not use for given in (requests, validation) for use in usable(given, hparams)):
        context.warn(
            "left_out", float(left), "give them rephrase_prompts (and locality probes), or change outer and locality",
            f"{left} of {len(requests) + len(validation)} requests cannot be edited in this training",
        )  # fmt: skip
    return context


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


def _memory(model: nn.Module, peak: Peak) -> Callable[[], int]:
    """What tells the bytes in use at most so far, over those in use now; ``peak`` tells it of the CPU."""
    cuda = [device for device in devices_of(model) if device.type == "cuda"]
    if not cuda:
        return lambda: peak.bytes
    start = sum(torch.cuda.memory_allocated(device) for device in cuda)
    return lambda: max(0, sum(torch.cuda.max_memory_allocated(device) for device in cuda) - start)
