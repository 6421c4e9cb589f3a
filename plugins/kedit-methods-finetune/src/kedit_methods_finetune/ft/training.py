"""The training loop of all fine-tuning methods: Adam on float32 masters of a few weights.

Specification: fine-tuning, section 2. An epoch goes over all mini-batches; one whose loss is below ``stop_loss`` makes
no step; when the epoch's mean loss (before its steps) is, training ends. After every mini-batch the entries are brought
back into their limits, where there are any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import EditContext, Masters
from kedit_core.forward import evaluating
from kedit_methods_finetune.ft.batches import MiniBatch, minibatches
from kedit_methods_finetune.ft.limits import Limits
from kedit_methods_finetune.hparams.ft import FtHyperParams
from kedit_methods_finetune.questions import Fact
from kedit_methods_finetune.readings import Readings, finite

_BETAS = (0.9, 0.999)
_EPS = 1e-8
_REMEDY = "lower lr, set norm_constraint, or run the model in float32 or bfloat16"


@frozen(eq=False)
class Trained:
    """What a call of training found.

    Attributes:
        deltas: parameter -> how far it moved, shape as stored, float32 (or the model's dtype when that is wider).
        epochs: mean loss of each epoch, before its steps.
        steps: optimiser steps that were made.
        losses: each fact's loss with the trained weights.
        limits: parameter -> where its entries had to stay; empty without a norm constraint.
        saturated: parameter -> share of its entries at the end of their limits.
        optimizer: Adam's state, as ``state_dict`` gives it.
    """

    deltas: dict[str, Tensor]
    epochs: tuple[float, ...]
    steps: int
    losses: tuple[float, ...]
    limits: dict[str, Limits]
    saturated: dict[str, float]
    optimizer: Mapping[str, Any]


class Trainer:
    """One optimiser on some weights; made and used inside ``context.trainable``.

    facts: how many an epoch goes over. Raises MethodError (from :meth:`step` or ``readings``) when a loss is not
    finite.
    """

    def __init__(self, masters: Masters, limits: Mapping[str, Limits], hparams: FtHyperParams, facts: int) -> None:
        self.masters, self.limits = masters, limits
        self.readings = Readings(facts, hparams.stop_loss, _REMEDY)
        self.adam = torch.optim.Adam(
            masters.parameters(), lr=hparams.lr, betas=_BETAS, eps=_EPS, weight_decay=hparams.weight_decay
        )

    def step(self, batch: MiniBatch) -> None:
        """A step against the mini-batch's mean loss, unless that is low enough already."""
        found: list[Tensor] = []
        alone = len(batch.parts) == 1
        with torch.enable_grad():
            for part in batch.parts:
                loss = part.losses().sum() / batch.size
                found.append(loss.detach().double())
                # the loss of a batch in parts is known at its end only
                if not alone:
                    loss.backward()  # type: ignore[no-untyped-call]
            wanted = self.readings.wants_step(sum(found[1:], found[0]), batch.size)
            if wanted and alone:
                loss.backward()  # type: ignore[no-untyped-call]
        self.masters.collect()
        if wanted:
            self.adam.step()
        self.adam.zero_grad()
        for name, limit in self.limits.items():
            limit.clip(self.masters[name])
        self.masters.write()


def train(
    context: EditContext, places: Sequence[str], facts: Sequence[Fact], hparams: FtHyperParams, *, shuffle: bool = False
) -> Trained:
    """Train the parameters ``places`` on the facts; the model is left as it was found.

    With ``shuffle`` the facts are dealt into mini-batches at random, once, and the mini-batches are taken in a new
    order in every epoch (dealing them anew would give up what is kept from step to step).
    """
    # before masters stand in for the weights, which a limit refers to without a copy
    limits = limits_of(context, places, hparams)
    with context.trainable(places) as masters, evaluating(context.model):
        order = _order(context, len(facts), shuffle)
        batches = minibatches(context, masters, facts, order, hparams)
        trainer = Trainer(masters, limits, hparams, len(facts))
        with context.progress("fine-tuning", total=float(hparams.num_steps)) as shown:
            for _ in range(hparams.num_steps):
                for i in _order(context, len(batches), shuffle):
                    trainer.step(batches[i])
                shown.advance()
                if trainer.readings.end_epoch():
                    break
        reached = {name: masters[name].detach().to(limit.anchor.dtype) for name, limit in limits.items()}
        return Trained(
            deltas={name: masters.delta(name) for name in places},
            epochs=trainer.readings.epochs(),
            steps=trainer.readings.steps,
            losses=_losses(batches, len(facts), trainer.readings.steps),
            limits=limits,
            saturated={name: limit.saturated(reached[name]) for name, limit in limits.items()},
            optimizer=trainer.adam.state_dict(),
        )


def limits_of(context: EditContext, places: Sequence[str], hparams: FtHyperParams) -> dict[str, Limits]:
    """Limits around the weights as they are now, or around the base's; none without a norm constraint."""
    if hparams.norm_constraint is None:
        return {}
    now = dict(context.model.named_parameters())
    anchors = {name: context.stack.base(name) if hparams.anchor == "base" else now[name] for name in places}
    return {name: Limits.around(anchor, hparams.norm_constraint) for name, anchor in anchors.items()}


def _order(context: EditContext, count: int, shuffle: bool) -> list[int]:
    return torch.randperm(count, generator=context.generator).tolist() if shuffle else list(range(count))


def _losses(batches: Sequence[MiniBatch], count: int, steps: int) -> tuple[float, ...]:
    """Each fact's loss with the weights as they are now."""
    found = [0.0] * count
    parts = [part for batch in batches for part in batch.parts]
    with torch.no_grad():
        losses = torch.cat([part.losses() for part in parts]).tolist()
    for fact, loss in zip((fact for part in parts for fact in part.facts), losses, strict=True):
        found[fact] = finite(loss, steps, _REMEDY)
    return tuple(found)
