"""Plain gradient descent on a side memory within its random subspace.

Specification: WISE, "Losses" and "Optimisation". The memory is trained as its difference from the main weight, in
float32 (or wider, as the model is).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_methods_memory.hparams.wise import WiseHyperParams
from kedit_methods_memory.wise.activation import Phi, moved, pooled
from kedit_methods_memory.wise.lesson import Lesson, Part, Read
from kedit_methods_memory.wise.losses import Margins

_STILL, _LOW = 1e-4, 0.02  # training ends when the loss changed by no more, and is no higher
_REMEDY = "lower lr, lower norm_constraint, or choose another layer"

MoreTerms = Callable[[Tensor, int], tuple[float, Tensor]]
"""Further loss at a step: ``(delta, step)`` to its value and its gradient ``[out, in]``."""


@frozen(eq=False)
class Learnt:
    """What a round found.

    Attributes:
        delta: ``[out, in]`` the difference from the main weight.
        losses: before each step: target and margins together.
        nll: of each edit, afterwards, the mean over its rows.
        inside: routing activation of each edit over its prompts, afterwards, the mean over its rows.
        outside: that of each edit's irrelevant texts, the largest; None where it has none as rows.
    """

    delta: Tensor
    losses: tuple[float, ...]
    nll: tuple[float, ...]
    inside: tuple[float, ...]
    outside: tuple[float | None, ...]


class Trainer:
    """The loss of a lesson as a function of a side memory, and its gradient.

    Memory: the graph of one part of the rows at a time, beside that of the irrelevant texts up to the projection.
    """

    def __init__(self, lesson: Lesson, margins: Margins, phi: Phi | None) -> None:
        self.lesson, self.margins, self.phi = lesson, margins, phi
        device = lesson.parts[0].read.value.device
        self.pairs = lesson.pairs.to(device)
        self.subjects = lesson.subjects.to(device)

    def gradient(self, delta: Tensor) -> tuple[float, Tensor]:
        """The loss (mean over rows of the target's NLL, and the margin loss) and its gradient ``[out, in]``."""
        lesson = self.lesson
        # the margins need all rows' activations; a single part's are not worked out again for the gradient
        once = len(lesson.parts) == 1
        with torch.set_grad_enabled(once):
            seen = [self._of_part(part, delta) for part in lesson.parts]
        texts = None if lesson.texts is None else self._of_texts(lesson.texts, delta)
        pull, loss = self._margin(seen, texts)
        total = torch.zeros_like(delta)
        with torch.enable_grad():
            if texts is not None and bool(pull.texts.any()):
                total += texts.gradient((texts.inside * pull.texts).sum())
            for part, found in zip(lesson.parts, seen, strict=True):
                here = found if once else self._of_part(part, delta)
                rows = list(part.rows)
                nll = part.losses(here.change).sum() / lesson.rows
                moved_by = (here.inside * pull.inside[rows]).sum() + (here.outside * pull.outside[rows]).sum()
                total += here.gradient(nll + moved_by.to(nll))
                loss += float(nll.detach())
        return loss, total

    def _margin(self, seen: Sequence[_Reaction], of_texts: _Reaction | None) -> tuple[_Pull, float]:
        """The margin loss, and how it changes with each routing activation."""
        inside = self._gathered([each.inside.detach() for each in seen])
        own = self._gathered([each.outside.detach() for each in seen])
        texts = inside[:0].clone() if of_texts is None else of_texts.inside.detach()
        with torch.enable_grad():
            leaves = [each.requires_grad_() for each in (inside, own, texts)]
            loss = self.margins.loss(inside, torch.cat([texts, own[self.subjects]]), self.pairs)
            pulls = torch.autograd.grad(loss, leaves, allow_unused=True)
        found = [torch.zeros_like(leaf) if pull is None else pull for leaf, pull in zip(leaves, pulls, strict=True)]
        return _Pull(*found), float(loss.detach())

    def _of_part(self, part: Part, delta: Tensor) -> _Reaction:
        return _Reaction.of(part.read, delta, self.phi, part.inside, part.outside)

    def _of_texts(self, read: Read, delta: Tensor) -> _Reaction:
        with torch.enable_grad():
            return _Reaction.of(read, delta, self.phi, read.prompt, torch.zeros_like(read.prompt))

    def _gathered(self, parts: list[Tensor]) -> Tensor:
        """What was found part by part, in the order of the rows."""
        rows = torch.tensor([row for part in self.lesson.parts for row in part.rows])
        found = torch.cat(parts)
        return torch.empty_like(found).index_copy_(0, rows.to(found.device), found)

    def afterwards(self, delta: Tensor, losses: tuple[float, ...]) -> Learnt:
        """What the memory comes to."""
        lesson = self.lesson
        with torch.no_grad():
            changes = [(part, part.read.change(delta)) for part in lesson.parts]
            nll = self._gathered([part.losses(change) for part, change in changes]).tolist()
            inside = self._gathered([part.read.activations(change, self.phi) for part, change in changes]).tolist()
            texts: list[float] = []
            if lesson.texts is not None:
                texts = lesson.texts.activations(lesson.texts.change(delta), self.phi).tolist()
        mine = lesson.edit.tolist()
        of_text = lesson.of_text.tolist()
        return Learnt(
            delta=delta.detach(),
            losses=losses,
            nll=_of_all(_means(nll, mine, lesson.edits)),
            inside=_of_all(_means(inside, mine, lesson.edits)),
            outside=_largest(texts, of_text, lesson.edits),
        )


@frozen(eq=False)
class _Reaction:
    """How some rows react to a memory.

    Attributes:
        change: ``[rows, columns, out]`` what it adds; with gradients enabled the leaf of a graph.
        inside, outside: ``[rows]`` routing activations over two masks.
    """

    read: Read
    change: Tensor
    inside: Tensor
    outside: Tensor

    @classmethod
    def of(cls, read: Read, delta: Tensor, phi: Phi | None, inside: Tensor, outside: Tensor) -> _Reaction:
        change = read.change(delta).requires_grad_(torch.is_grad_enabled())
        norms = moved(read.output, change, phi)
        return cls(read, change, pooled(norms, inside), pooled(norms, outside))

    def gradient(self, loss: Tensor) -> Tensor:
        """``[out, in]`` that of the memory: what it adds is linear in it."""
        (pull,) = torch.autograd.grad(loss, self.change)
        return pull.flatten(0, -2).T @ self.read.value.flatten(0, -2)


@frozen(eq=False)
class _Pull:
    """How the margin loss changes with each activation: of the edit rows, of their outsides, of the texts."""

    inside: Tensor
    outside: Tensor
    texts: Tensor


def learn(
    trainer: Trainer,
    start: Tensor,
    mask: Tensor,
    weight: Tensor,
    hparams: WiseHyperParams,
    more: MoreTerms | None = None,
) -> Learnt:
    """Train a side memory from ``start``; only entries of ``mask`` move, but for a leaky decay.

    Args:
        start: ``[out, in]`` the difference to begin with.
        mask: ``[out, in]`` bool.
        weight: ``[out, in]`` the main weight, which a leaky decay pulls to zero.

    Raises MethodError when the loss is not finite.
    """
    delta, losses = start.clone(), list[float]()
    for step in range(hparams.n_iter):
        loss, gradient = trainer.gradient(delta)
        if more is not None:
            extra, pull = more(delta, step)
            loss, gradient = loss + extra, gradient + pull
        if not math.isfinite(loss):
            raise MethodError(f"the loss is {loss} after {step} steps; {_REMEDY}")
        losses.append(loss)
        if step and abs(losses[-1] - losses[-2]) <= _STILL and loss <= _LOW:
            break
        change = gradient * mask
        if hparams.decay == "leaky":
            change = change + hparams.weight_decay * (weight + delta)
        delta = delta - hparams.lr * change
        if hparams.norm_constraint is not None:
            delta = delta.clamp(-hparams.norm_constraint, hparams.norm_constraint)
    found = trainer.afterwards(delta, tuple(losses))
    if not all(map(math.isfinite, (*found.nll, *found.inside))):
        raise MethodError(f"the side memory gives no finite loss after {len(losses)} steps; {_REMEDY}")
    return found


def _means(values: list[float], groups: list[int], count: int) -> tuple[float | None, ...]:
    """The mean of each group's values; None for a group without any."""
    sums, sizes = [0.0] * count, [0] * count
    for value, group in zip(values, groups, strict=True):
        sums[group] += value
        sizes[group] += 1
    return tuple(total / size if size else None for total, size in zip(sums, sizes, strict=True))


def _largest(values: list[float], groups: list[int], count: int) -> tuple[float | None, ...]:
    """The largest of each group's values; None for a group without any."""
    found: list[float | None] = [None] * count
    for value, group in zip(values, groups, strict=True):
        best = found[group]
        found[group] = value if best is None else max(best, value)
    return tuple(found)


def _of_all(means: tuple[float | None, ...]) -> tuple[float, ...]:
    return tuple(math.nan if mean is None else mean for mean in means)
