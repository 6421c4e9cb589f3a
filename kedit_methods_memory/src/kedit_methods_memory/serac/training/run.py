"""Training a SERAC editor from start to finish, as a function."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve, frozen

from kedit_core.editing import Editor
from kedit_core.editing.progress import Progress, silent
from kedit_core.editing.sources import resolve_model
from kedit_core.errors import InputError
from kedit_core.forward import ForwardTools, TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.patches import RoutedModel, config_digest, model_digest
from kedit_core.requests import EditRequest
from kedit_methods_memory.encoders import NGRAMS, load_encoder
from kedit_methods_memory.hparams.serac import SeracTrainingHyperParams
from kedit_methods_memory.serac.checkpoint import Scope, SeracEditor, check_place, load_counterfactual
from kedit_methods_memory.serac.classifier import Classifier, resolved
from kedit_methods_memory.serac.training.loop import Loop, Outcome, Schedule
from kedit_methods_memory.serac.training.negatives import Neighbours
from kedit_methods_memory.serac.training.records import Drawing, Record, ScopeBatch, records_of, split
from kedit_methods_memory.serac.training.sampler import Sampler
from kedit_methods_memory.serac.training.scratch import scratch_encoder
from kedit_methods_memory.serac.training.step import SeracStep
from kedit_methods_memory.serac.training.store import Store

CLASSIFIER = "distilbert/distilbert-base-cased"
SCRATCH = "scratch"
_TIMING = ("iterations", "val_interval", "patience", "save_interval")  # may change when resuming


@frozen(kw_only=True)
class Training:
    """A finished training.

    Attributes:
        folder: the editor checkpoint, with the best parameters. outcome: how it went.
        records, validation: how many there were. seconds: wall time of the loop.
    """

    folder: Path
    outcome: Outcome
    records: int
    validation: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "folder": str(self.folder)}


def train_serac(
    editor: Editor,
    requests: Sequence[EditRequest],
    folder: Path | str,
    hparams: SeracTrainingHyperParams | None = None,
    *,
    classifier: str | Path = CLASSIFIER,
    counterfactual: str | Path | None = None,
    validation: Sequence[EditRequest] | None = None,
    held_out: float = 0.1,
    encoder: str = NGRAMS,
    encoder_folder: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: Progress = silent,
) -> Training:
    """Train scope classifier and counterfactual model for a base, and write the editor checkpoint.

    The base is not changed; with objective ``supervised`` it is not even run (unless it answers itself).

    Args:
        editor: on the base, with no method or any. requests: training set; locality probes are prompts out of scope.
        folder: of the editor checkpoint; the state to resume from goes to ``FOLDER.training`` beside it.
        classifier: an encoder to start from (folder, or name on the Hub), or ``scratch``: a small one with the
            base's tokens.
        counterfactual: a language model to start from (folder or name); None with ``freeze_cntr`` only.
        validation: requests to validate on; by default the share ``held_out`` of the cases.
        encoder, encoder_folder: of texts, to find hard negatives by.
        seed: of everything random.
        resume: go on with what was interrupted.

    Memory: both models, twice over for Adam's state and once for gradients.

    Raises:
        InputError: the data, the models or the folder cannot be used; nothing was trained.
        MethodError: it diverged.
    """
    hparams, folder = hparams or SeracTrainingHyperParams(), Path(folder)
    check_place(folder)
    if (counterfactual is None) != hparams.freeze_cntr:
        raise InputError(
            "give a counterfactual model to start from, or set freeze_cntr and leave it out: the base then answers "
            "from the edit's text itself"
        )
    kept, held = (requests, validation) if validation is not None else split(requests, held_out, seed)
    records, judged = records_of(kept, hparams), records_of(held, hparams)
    if shared := sorted({record.id for record in records} & {record.id for record in judged}):
        raise InputError(f"the case {shared[0]!r} is in the training set and in the validation; take it out of one")
    device = next(editor.model.parameters()).device
    made = _starting_editor(editor, hparams, classifier, counterfactual, seed, device)
    step = SeracStep(made, _answering(editor, made), editor.forward, hparams)
    step.check_lengths([*records, *judged])
    neighbours = _neighbours(records, hparams, encoder, encoder_folder, device)
    drawing = Drawing(records, hparams, neighbours)
    store = Store(folder.with_name(f"{folder.name}.training"))
    store.begin(anew=not resume)
    origin = _origin(editor, made, hparams, records, judged, seed)
    loop: Loop[ScopeBatch] = Loop(
        step.parameters(),
        step.rates(),
        step,
        drawing.batch,
        Sampler(len(records), hparams.batch_size, seed),
        _validation(judged, records, hparams, seed),
        Schedule(
            iterations=hparams.iterations,
            accumulate=hparams.accumulate,
            clip=hparams.clip,
            val_interval=hparams.val_interval,
            patience=hparams.patience,
            save_interval=hparams.save_interval,
        ),
        store,
        origin,
        progress,
    )
    if resume:
        loop.resume()
    started = time.perf_counter()
    outcome = loop.run()
    seconds = time.perf_counter() - started
    trained = {"iteration": outcome.best_iteration, "loss": outcome.best, "skipped": outcome.skipped}
    evolve(made, origin={**origin, "trained": trained}).save(folder)
    return Training(folder=folder, outcome=outcome, records=len(records), validation=len(judged), seconds=seconds)


def _starting_editor(
    editor: Editor,
    hparams: SeracTrainingHyperParams,
    classifier: str | Path,
    counterfactual: str | Path | None,
    seed: int,
    device: torch.device,
) -> SeracEditor:
    """The models to train, on the base's device."""
    answering: RoutedModel | None = None
    if counterfactual is not None:
        answering = load_counterfactual(resolve_model(str(counterfactual), editor.host).folder, device)
        # every parameter is trained in float32, whatever it was stored in
        answering.model.float()
    cross = hparams.form == "cross_attend"
    scope = Scope(
        cross_attend=cross,
        labelled=hparams.key == "labelled",
        separator="",
        heads=hparams.heads,
        measure=hparams.measure,
        square=hparams.square,
        bounded=hparams.bounded,
        scale=hparams.scale,
        context=hparams.context,
        freeze_cntr=hparams.freeze_cntr,
    )
    if str(classifier) == SCRATCH:
        model, tokenizer = scratch_encoder(
            editor.tokenizer,
            width=hparams.scratch_width,
            layers=hparams.scratch_layers,
            heads=hparams.scratch_heads,
            seed=seed,
            classes=cross,
        )
        made = Classifier(model, tokenizer, scope.metric, pooling=resolved(hparams.pooling, tokenizer))
    else:
        folder = resolve_model(str(classifier), editor.host).folder
        made = Classifier.load(folder, scope.metric, cross=cross, pooling=hparams.pooling, seed=seed)
    made.to(device)
    scope = evolve(scope, separator=made.separator, pooling=made.pooling)
    if made.width % hparams.heads:
        raise InputError(
            f"the classifier's vectors have {made.width} numbers, which heads={hparams.heads} cannot share"
        )
    return SeracEditor(scope=scope, classifier=made, counterfactual=answering)


def _answering(editor: Editor, made: SeracEditor) -> ForwardTools:
    """Tools of the model that answers in scope."""
    if made.counterfactual is None:
        return editor.forward
    view = AdapterRegistry(editor.host.adapters()).for_model(made.counterfactual.model)
    boundary = TokenBoundary(made.counterfactual.tokenizer, encoder_decoder=view.is_encoder_decoder)
    return ForwardTools(view.model, view, boundary)


def _neighbours(
    records: Sequence[Record],
    hparams: SeracTrainingHyperParams,
    encoder: str,
    folder: Path | None,
    device: torch.device,
) -> Neighbours | None:
    if hparams.hard_negatives == 0:
        return None
    return Neighbours.among(
        [record.prompt for record in records],
        [record.id for record in records],
        load_encoder(encoder, folder=folder, device=device).encode,
        hparams.hard_near,
        hparams.hard_far,
        hparams.hard_temperature,
    )


def _validation(
    judged: Sequence[Record], records: Sequence[Record], hparams: SeracTrainingHyperParams, seed: int
) -> list[ScopeBatch]:
    """Micro-batches of held-out records, always the same; where they are of one case, prompts of the training set's
    records are out of scope."""
    apart = len({record.id for record in judged}) > 1
    drawing = Drawing([*judged, *([] if apart else records)], hparams)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(len(judged), generator=generator).tolist()[: hparams.val_items]
    chunks = [order[start : start + hparams.batch_size] for start in range(0, len(order), hparams.batch_size)]
    return [drawing.batch(chunk, generator) for chunk in chunks]


def _origin(
    editor: Editor,
    made: SeracEditor,
    hparams: SeracTrainingHyperParams,
    records: Sequence[Record],
    judged: Sequence[Record],
    seed: int,
) -> dict[str, Any]:
    """What the editor is made from; also what a run must share with one that it resumes. No path: digests."""
    models: dict[str, str] = {"classifier": model_digest(made.classifier.model)}
    if made.counterfactual is not None:
        models["counterfactual"] = model_digest(made.counterfactual.model)
    config: Any = editor.model.config
    return {
        "base": {
            "name": editor.name,
            "revision": editor.revision,
            "architecture": type(editor.model).__name__,
            "config_sha256": config_digest(config),
        },
        "tokenizer_sha256": _digest(editor.tokenizer.get_vocab()),
        "started_from": models,
        "hparams": {name: value for name, value in hparams.to_dict().items() if name not in _TIMING},
        "data": {"training": _digest([asdict(r) for r in records]), "validation": _digest([asdict(r) for r in judged])},
        "seed": seed,
        "torch": torch.__version__.partition("+")[0],
    }


def _digest(value: Mapping[str, Any] | Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
