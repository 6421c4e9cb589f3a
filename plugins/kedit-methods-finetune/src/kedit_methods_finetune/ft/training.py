"""The training loop of all fine-tuning methods: Adam on float32 masters of a few weights.

Specification: fine-tuning, section 2. An epoch goes over all mini-batches; one whose loss is below ``stop_loss`` makes
no step; when the epoch's mean loss (before its steps) is, training ends. After every mini-batch the entries are brought
back into their limits, where there are any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import EditContext, Masters
from kedit_core.errors import MethodError
from kedit_core.forward import evaluating
from kedit_methods_finetune.ft.batches import MiniBatch, minibatches
from kedit_methods_finetune.ft.limits import Limits
from kedit_methods_finetune.hparams.ft import FtHyperParams
from kedit_methods_finetune.questions import Fact

_BETAS = (0.9, 0.999)
_EPS = 1e-8


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

    Raises MethodError (from :meth:`step`) when a loss is not finite.
    """

    def __init__(self, masters: Masters, limits: Mapping[str, Limits], hparams: FtHyperParams) -> None:
        self.masters, self.limits, self.hparams = masters, limits, hparams
        self.adam = torch.optim.Adam(
            masters.parameters(), lr=hparams.lr, betas=_BETAS, eps=_EPS, weight_decay=hparams.weight_decay
        )
        self.steps = 0

    def step(self, batch: MiniBatch) -> float:
        """The mini-batch's mean loss, and a step against it unless it is low enough already."""
        stop, value = self.hparams.stop_loss, 0.0
        for part in batch.parts:
            with torch.enable_grad():
                loss = part.losses().sum() / batch.size
                value += float(loss.detach())
                # the loss of a batch in parts is known at its end only
                if len(batch.parts) > 1 or value >= stop:
                    loss.backward()  # type: ignore[no-untyped-call]
            self._refuse_infinite(value)
        self.masters.collect()
        if value >= stop:
            self.adam.step()
            self.steps += 1
        self.adam.zero_grad()
        for name, limit in self.limits.items():
            limit.clip(self.masters[name])
        self.masters.write()
        return value

    def _refuse_infinite(self, value: float) -> None:
        if not math.isfinite(value):
            raise MethodError(
                f"the fine-tuning loss is {value} after {self.steps} steps; lower lr, set norm_constraint, or run the "
                "model in float32 or bfloat16"
            )


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
        trainer = Trainer(masters, limits, hparams)
        epochs: list[float] = []
        with context.progress("fine-tuning", total=float(hparams.num_steps)) as shown:
            for _ in range(hparams.num_steps):
                taken = [batches[i] for i in _order(context, len(batches), shuffle)]
                epochs.append(sum(trainer.step(batch) * batch.size for batch in taken) / len(facts))
                shown.advance()
                if epochs[-1] < hparams.stop_loss:
                    break
        reached = {name: masters[name].detach().to(limit.anchor.dtype) for name, limit in limits.items()}
        return Trained(
            deltas={name: masters.delta(name) for name in places},
            epochs=tuple(epochs),
            steps=trainer.steps,
            losses=_losses(batches, len(facts)),
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


def _losses(batches: Sequence[MiniBatch], count: int) -> tuple[float, ...]:
    found = [0.0] * count
    with torch.no_grad():
        for part in (part for batch in batches for part in batch.parts):
            for fact, loss in zip(part.facts, part.losses().tolist(), strict=True):
                found[fact] = loss
    return tuple(found)
