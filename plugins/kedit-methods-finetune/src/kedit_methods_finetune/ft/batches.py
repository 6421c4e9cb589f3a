"""Mini-batches that fit the memory: each in parts, each part with the shortest path that proved right."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import EditContext, Masters
from kedit_core.forward import ForwardTools
from kedit_core.models import ModelView
from kedit_methods_finetune.ft.paths import Path, Whole, kept_estimate, shortest
from kedit_methods_finetune.hparams.ft import FtHyperParams
from kedit_methods_finetune.questions import Fact, Questions

logger = logging.getLogger(__name__)

# logits of both paths are compared once; only a path that computes something else is off by more than this
_SAME = {torch.float64: 1e-5, torch.float32: 1e-3}
_SAME_HALF = 0.1
# what a model that calls its blocks in a way of its own may raise when they are called alone
_MISFITS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)


@frozen(eq=False)
class Part:
    """Rows of a mini-batch that are run together; ``facts`` are their places among all facts of the call."""

    facts: tuple[int, ...]
    questions: Questions
    path: Path

    def losses(self) -> Tensor:
        """``[rows]`` each fact's loss, with the weights as they are now."""
        return self.questions.losses(self.path.logits())


@frozen(eq=False)
class MiniBatch:
    """Facts of one optimiser step."""

    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """How many facts."""
        return sum(len(part.facts) for part in self.parts)


def minibatches(
    context: EditContext, masters: Masters, facts: Sequence[Fact], order: Sequence[int], hparams: FtHyperParams
) -> list[MiniBatch]:
    """The facts in mini-batches of ``batch_size``, in this order.

    What paths keep takes half of the context's memory budget at most (later parts are then run whole), and what a part
    needs in a step the other half.
    """
    half = context.memory_budget // 2
    kept = 0
    made = []
    for start in range(0, len(order), hparams.batch_size):
        parts = []
        for rows in _portions(context.adapter, facts, order[start : start + hparams.batch_size], half):
            questions = Questions.of(context.forward, [facts[i] for i in rows], hparams.objective)
            need = kept_estimate(context.forward, questions, hparams)
            path = _path(context, masters, questions, hparams) if kept + need <= half else None
            path = path or Whole(context.forward, questions)
            kept += path.kept_bytes
            parts.append(Part(tuple(rows), questions, path))
        made.append(MiniBatch(tuple(parts)))
    return made


def step_bytes(view: ModelView, fact: Fact, width: int) -> int:
    """Roughly what one fact of a part of this width needs in a step: activations and gradients of all blocks, logits.

    All blocks, since the trained layer's depth is what the plain path does not use.
    """
    blocks, hidden, inner = view.num_layers, view.hidden_size, view.mlp_size(0)
    return 4 * (width * blocks * (16 * hidden + 5 * inner) + 2 * len(fact.target) * view.vocab_size)


def _portions(view: ModelView, facts: Sequence[Fact], rows: Sequence[int], budget: int) -> list[list[int]]:
    width = max(len(facts[i].prompt) + len(facts[i].target) for i in rows)
    portions: list[list[int]] = [[]]
    used = 0
    for row in rows:
        need = step_bytes(view, facts[row], width)
        if portions[-1] and used + need > budget:
            portions.append([])
            used = 0
        portions[-1].append(row)
        used += need
    return portions


def _path(context: EditContext, masters: Masters, questions: Questions, hparams: FtHyperParams) -> Path | None:
    """The shortest path, or None where it does not give the plain one's logits (tried once for each kind of batch)."""
    forward = context.forward
    # module operations on the stack read whole passes
    if not forward.fast or (forward.scope is not None and forward.scope.watching):
        return None
    padded = not bool(questions.batch.attention_mask.all())
    key = ("fine-tuning path", hparams.layers, hparams.part, hparams.stack, hparams.objective, padded)
    try:
        path = shortest(forward, questions, hparams)
        trusted = context.remember(key, lambda: _same(forward, masters, path))
    except _MISFITS as error:
        logger.warning("%s has no short way to the trained weights (%s)", type(context.model).__name__, error)
        return None
    return path if trusted else None


def _same(forward: ForwardTools, masters: Masters, path: Path) -> bool:
    """Whether a path gives the plain one's logits when the trained weights are others than it was built with."""
    with torch.no_grad():
        try:
            # doubling and halving is exact, so nothing has to be kept to undo it
            _scale(masters, 2.0)
            got, want = path.logits(), Whole(forward, path.questions).logits()
        finally:
            _scale(masters, 0.5)
    bound = _SAME.get(got.dtype, _SAME_HALF) * max(1.0, float(want.abs().max()))
    same = bool((got.float() - want.float()).abs().max() <= bound)
    if not same:
        logger.warning("running %s of %s gives other logits; whole passes are run", path.told, type(forward.model))
    return same


def _scale(masters: Masters, factor: float) -> None:
    for master in masters.parameters():
        master.mul_(factor)
    masters.write()
