"""Training adapters on the new answers: teacher forcing, cross-entropy on target tokens only, Adam.

Specification: fine-tuning, sections 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import progress
from kedit_core.errors import MethodError
from kedit_core.forward import ForwardTools, Side
from kedit_methods_finetune.hparams.lora import AdapterHyperParams
from kedit_methods_finetune.lora.adapters import Adapters
from kedit_methods_finetune.questions import Fact, Questions


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


def fact_losses(forward: ForwardTools, facts: Sequence[Fact], *, grad: bool, side: Side = "right") -> Tensor:
    """``[rows]``: each fact's mean negative log-likelihood of its target's tokens, in float32 or wider.

    Prompt and padding enter no loss, and logits are made at target positions only.
    """
    questions = Questions.of(forward, facts, "target_new", side)
    logits = forward.run(questions.batch, logits_at=questions.cells, grad=grad).logits
    if logits is None:
        raise MethodError("the model gave no logits; load the class with the language-model head")
    return questions.losses(logits)


def chunk_loss(losses: Tensor, facts: Sequence[Fact], hparams: AdapterHyperParams) -> Tensor:
    """One number of a chunk's losses ``[rows]``: the mean over all its tokens, or over its facts."""
    if hparams.loss == "request":
        return losses.mean()
    lengths = torch.tensor([len(fact.target) for fact in facts]).to(losses)
    return (losses * lengths).sum() / lengths.sum()


def steps_of(facts: int, hparams: AdapterHyperParams) -> int:
    """Optimiser steps of a whole training."""
    return int(hparams.num_steps * math.ceil(facts / hparams.batch_size))


def train(
    forward: ForwardTools,
    adapters: Adapters,
    facts: Sequence[Fact],
    hparams: AdapterHyperParams,
    show: progress.Progress = progress.silent,
) -> Trained:
    """Train adapters that are on the model, then measure without dropout.

    Memory: the activations of one chunk in all blocks from the first adapter on, the adapters' gradients and two
    moments.

    Raises MethodError when a loss is not finite, or no adapter is on the way to the logits.
    """
    chunks = [facts[i : i + hparams.batch_size] for i in range(0, len(facts), hparams.batch_size)]
    adam = torch.optim.Adam(adapters.parameters(), lr=hparams.lr, weight_decay=hparams.weight_decay)
    epochs: list[float] = []
    steps = 0
    with torch.enable_grad(), show("training adapters", total=float(hparams.num_steps)) as bar:
        for _ in range(hparams.num_steps):
            total = 0.0
            for chunk in chunks:
                with adapters.dropout.drawing():
                    loss = chunk_loss(fact_losses(forward, chunk, grad=True), chunk, hparams)
                value = _finite(float(loss.detach()), steps)
                total += value * len(chunk)
                if value >= hparams.stop_loss:
                    _step(adam, adapters, loss, steps)
                    steps += 1
            epochs.append(total / len(facts))
            bar.advance()
            if epochs[-1] < hparams.stop_loss:
                break
    with torch.no_grad():
        final = torch.cat([fact_losses(forward, chunk, grad=False) for chunk in chunks])
    return Trained(tuple(epochs), steps, tuple(_finite(loss, steps) for loss in final.tolist()))


def _step(adam: torch.optim.Adam, adapters: Adapters, loss: Tensor, step: int) -> None:
    if not loss.requires_grad:
        raise MethodError(
            "no adapter is on the way from the prompt to the logits, so there is nothing to learn; target other "
            "projections, with -p targets=[...]"
        )
    penalty = adapters.penalty()
    adam.zero_grad()
    # the inputs are named, so that nothing else is given a gradient
    torch.autograd.backward(loss if penalty is None else loss + penalty.to(loss), inputs=adapters.parameters())
    adam.step()
    adapters.after_step(step)


def _finite(value: float, steps: int) -> float:
    if not math.isfinite(value):
        raise MethodError(f"the loss is {value} after {steps} steps; lower lr, or run the model in float32 or bfloat16")
    return value
