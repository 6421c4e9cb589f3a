"""Which path a training takes: the short one where it is known to give the model's own logits."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_methods_memory.hparams.t_patcher import TPatcherHyperParams
from kedit_methods_memory.t_patcher.neurons import Neurons
from kedit_methods_memory.t_patcher.place import LastMlp
from kedit_methods_memory.t_patcher.states import Asked, Kept, Path, Whole

logger = logging.getLogger(__name__)

_SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
_SAME_HALF = 0.05
_MISFITS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)


def path_for(context: EditContext, place: LastMlp, asked: Asked, hparams: TPatcherHyperParams) -> Path:
    """The path to train a fact on. The short one is compared once with the plain one; a model where they differ gets
    the plain one, and a line in the log says so."""
    if hparams.dropout:
        return Whole(context.forward, place, asked, copies=hparams.example_repeat)
    return steady_path(context, place, asked, hparams)


def steady_path(context: EditContext, place: LastMlp, asked: Asked, hparams: TPatcherHyperParams) -> Path:
    """The same without dropout, whatever the settings say."""
    if hparams.fast and place.simple:
        trusted = context.remember(("t_patcher", "short path"), lambda: _fits(context, place, asked))
        if trusted:
            return Kept(context.forward, place, asked)
    return Whole(context.forward, place, asked)


def _fits(context: EditContext, place: LastMlp, asked: Asked) -> bool:
    """Whether both paths see the same when large random neurons fire."""
    name = type(context.model).__name__
    try:
        with torch.no_grad():
            kept = Kept(context.forward, place, asked)
            neurons = _probe(kept)
            got, wanted = (path.read(neurons).logits for path in (kept, Whole(context.forward, place, asked)))
    except _MISFITS as error:
        logger.warning("the last block of %s cannot be resumed (%s); whole passes are used", name, error)
        return False
    bound = _SAME.get(wanted.dtype, _SAME_HALF) * max(1.0, float(wanted.abs().max()))
    same = bool((got - wanted).abs().max() <= bound)
    if not same:
        logger.warning("the resumed last block of %s gives other logits; whole passes are used", name)
    return same


def _probe(kept: Kept) -> Neurons:
    query = kept.query[:1].to(torch.promote_types(kept.query.dtype, torch.float32))
    generator = torch.Generator().manual_seed(0)
    drawn: Tensor = torch.randn(kept.inside.shape[-1], generator=generator).to(query)
    values = drawn * kept.inside.to(query).square().mean().sqrt()
    return Neurons(query / query.square().sum(), query.new_zeros(1), values.unsqueeze(0), "relu")
