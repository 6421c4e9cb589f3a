"""Training adapters on the new answers: teacher forcing, cross-entropy on target tokens only, Adam.

Specification: fine-tuning, sections 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from attrs import evolve, frozen
from torch import Tensor

from kedit_core.editing import progress
from kedit_core.errors import MethodError
from kedit_core.forward import ForwardTools, Side
from kedit_methods_finetune.hparams.lora import AdapterHyperParams, Loss
from kedit_methods_finetune.lora.adapters import Adapters
from kedit_methods_finetune.questions import Fact, Questions
from kedit_methods_finetune.readings import Readings, finite
from kedit_methods_finetune.timing import seconds_of

_REMEDY = "lower lr, or run the model in float32 or bfloat16"


@frozen(eq=False)
class Trained:
    """How training went.

    Attributes:
        epochs: mean loss of each epoch over its facts, of the steps' own passes: dropout on, before the step, without
            the penalty.
        steps: optimiser steps made.
        losses: each fact's loss with the trained adapters, dropout off.
    """

    epochs: tuple[float, ...]
    steps: int
    losses: tuple[float, ...]


@frozen(eq=False)
class Chunk:
    """Facts of one step, laid out once: nothing is sent to the device again when they are asked again.

    Attributes:
        questions: where the model is asked, and for which tokens.
        lengths: ``[rows]`` tokens of each fact's target.
    """

    questions: Questions
    lengths: Tensor

    @classmethod
    def of(cls, forward: ForwardTools, facts: Sequence[Fact], side: Side = "right") -> Chunk:
        """The rows, padded on one side."""
        questions = Questions.of(forward, facts, "target_new", side)
        return cls(questions, torch.tensor([len(fact.target) for fact in facts]).to(questions.token.device))

    @property
    def size(self) -> int:
        """How many facts."""
        return self.questions.batch.rows

    def losses(self, forward: ForwardTools, *, grad: bool) -> Tensor:
        """``[rows]``: each fact's mean negative log-likelihood of its target's tokens, in float32 or wider.

        Prompt and padding enter no loss, and logits are made at target positions only.
        """
        logits = forward.run(self.questions.batch, logits_at=self.questions.cells, grad=grad).logits
        if logits is None:
            raise MethodError("the model gave no logits; load the class with the language-model head")
        return self.questions.losses(logits)

    def mean(self, losses: Tensor, loss: Loss) -> Tensor:
        """One number of the losses ``[rows]``: the mean over the facts, or over all their tokens."""
        if loss == "request":
            return losses.mean()
        lengths = self.lengths.to(losses)
        return (losses * lengths).sum() / lengths.sum()


def steps_of(facts: int, hparams: AdapterHyperParams) -> int:
    """Optimiser steps of a whole training."""
    return int(hparams.num_steps * math.ceil(facts / hparams.batch_size))


class Trainer:
    """One optimiser on adapters that are on the model.

    facts: how many an epoch goes over. Raises MethodError (from :meth:`step` or ``readings``) when a loss is not
    finite, or no adapter is on the way to the logits.
    """

    def __init__(self, forward: ForwardTools, adapters: Adapters, hparams: AdapterHyperParams, facts: int) -> None:
        self.forward, self.adapters, self.hparams = forward, adapters, hparams
        self.readings = Readings(facts, hparams.stop_loss, _REMEDY)
        self.adam = torch.optim.Adam(adapters.parameters(), lr=hparams.lr, weight_decay=hparams.weight_decay)

    def step(self, chunk: Chunk) -> None:
        """A step against the chunk's loss, dropout on, unless that is low enough already."""
        with torch.enable_grad():
            with self.adapters.dropout.drawing():
                loss = chunk.mean(chunk.losses(self.forward, grad=True), self.hparams.loss)
            if not self.readings.wants_step(loss, chunk.size):
                return
            if not loss.requires_grad:
                raise MethodError(
                    "no adapter is on the way from the prompt to the logits, so there is nothing to learn; target "
                    "other projections, with -p targets=[...]"
                )
            penalty = self.adapters.penalty()
            self.adam.zero_grad()
            # the inputs are named, so that nothing else is given a gradient
            inputs = self.adapters.parameters()
            torch.autograd.backward(loss if penalty is None else loss + penalty.to(loss), inputs=inputs)
        self.adam.step()
        self.adapters.after_step(self.readings.steps - 1)


def train(
    forward: ForwardTools,
    adapters: Adapters,
    facts: Sequence[Fact],
    hparams: AdapterHyperParams,
    show: progress.Progress = progress.silent,
) -> Trained:
    """Train adapters that are on the model, then measure without dropout.

    Memory: the activations of one chunk in all blocks from the first adapter on, the adapters' gradients and two
    moments, and the ids of all facts.

    Raises MethodError when a loss is not finite, or no adapter is on the way to the logits.
    """
    size = hparams.batch_size
    chunks = [Chunk.of(forward, facts[i : i + size]) for i in range(0, len(facts), size)]
    trainer = Trainer(forward, adapters, hparams, len(facts))
    with show("training adapters", total=float(hparams.num_steps)) as bar:
        for _ in range(hparams.num_steps):
            for chunk in chunks:
                trainer.step(chunk)
            bar.advance()
            if trainer.readings.end_epoch():
                break
    epochs, steps = trainer.readings.epochs(), trainer.readings.steps
    with torch.no_grad():
        final = torch.cat([chunk.losses(forward, grad=False) for chunk in chunks]).tolist()
    return Trained(epochs, steps, tuple(finite(loss, steps, _REMEDY) for loss in final))


def timed_step(forward: ForwardTools, adapters: Adapters, facts: Sequence[Fact], hparams: AdapterHyperParams) -> float:
    """Seconds of a step on these facts, with adapters made for a few steps at least."""
    chunk, trainer = Chunk.of(forward, facts), Trainer(forward, adapters, evolve(hparams, stop_loss=0.0), len(facts))
    return seconds_of(lambda: trainer.step(chunk), forward.device)
