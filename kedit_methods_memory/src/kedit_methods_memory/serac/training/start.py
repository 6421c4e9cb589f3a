"""The models that a SERAC training starts from."""

from __future__ import annotations

import torch
from attrs import evolve

from kedit_core.editing.sources import resolve_model
from kedit_core.errors import InputError
from kedit_core.forward import ForwardTools, TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.patches import RoutedModel
from kedit_core.training import TrainingContext
from kedit_methods_memory.hparams.serac import SeracTrainingHyperParams
from kedit_methods_memory.serac.checkpoint import Scope, SeracEditor, load_counterfactual
from kedit_methods_memory.serac.classifier import Classifier, resolved
from kedit_methods_memory.serac.training.scratch import scratch_encoder

CLASSIFIER = "distilbert/distilbert-base-cased"
SCRATCH = "scratch"


def starting_editor(context: TrainingContext, hparams: SeracTrainingHyperParams, device: torch.device) -> SeracEditor:
    """The models to train, on the base's device.

    Options of the context: ``classifier``, an encoder (folder, or name on the Hub; DistilBERT unless given), or
    ``scratch``: a small one with the base's tokens; ``counterfactual``, a language model (folder or name), and none
    with ``freeze_cntr``.

    Raises InputError for models that cannot be had, or do not suit the settings.
    """
    classifier = str(context.options.get("classifier", CLASSIFIER))
    counterfactual = context.options.get("counterfactual")
    if (counterfactual is None) != hparams.freeze_cntr:
        raise InputError(
            "give a counterfactual model to start from (--option counterfactual=MODEL), or set freeze_cntr and leave "
            "it out: the base then answers from the edit's text itself"
        )
    answering: RoutedModel | None = None
    if counterfactual is not None:
        answering = load_counterfactual(resolve_model(str(counterfactual), context.host).folder, device)
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
    if classifier == SCRATCH:
        model, tokenizer = scratch_encoder(
            context.tokenizer,
            width=hparams.scratch_width,
            layers=hparams.scratch_layers,
            heads=hparams.scratch_heads,
            seed=context.seed,
            classes=cross,
        )
        made = Classifier(model, tokenizer, scope.metric, pooling=resolved(hparams.pooling, tokenizer))
    else:
        folder = resolve_model(classifier, context.host).folder
        made = Classifier.load(folder, scope.metric, cross=cross, pooling=hparams.pooling, seed=context.seed)
    made.to(device)
    scope = evolve(scope, separator=made.separator, pooling=made.pooling)
    if made.width % hparams.heads:
        raise InputError(
            f"the classifier's vectors have {made.width} numbers, which heads={hparams.heads} cannot share"
        )
    return SeracEditor(scope=scope, classifier=made, counterfactual=answering)


def answering_tools(context: TrainingContext, made: SeracEditor) -> ForwardTools:
    """Tools of the model that answers in scope."""
    if made.counterfactual is None:
        return context.forward
    view = AdapterRegistry(context.host.adapters()).for_model(made.counterfactual.model)
    boundary = TokenBoundary(made.counterfactual.tokenizer, encoder_decoder=view.is_encoder_decoder)
    return ForwardTools(view.model, view, boundary)
