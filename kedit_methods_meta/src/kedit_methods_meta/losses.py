"""Losses of several separate edits tried in one batch: the mean over tries of what each would have alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.training.losses import log_softmax


def shares(group: Tensor) -> Tensor:
    """``[n]`` in float64: the weight of each of ``n`` cells in a mean over tries of the mean over each try's own cells.

    group: ``[n]`` which try each cell is of.
    """
    count = torch.bincount(group)
    return 1 / (count[group] * (count > 0).sum()).double()


@frozen(eq=False)
class Reading:
    """What a model gives for tokens it is asked for.

    Attributes:
        logs: ``[n]`` log-probability of each token. right: ``[n]`` whether it is the likeliest.
        row: ``[n]`` which pair it is of.
    """

    logs: Tensor
    right: Tensor
    row: Tensor

    @classmethod
    def of(cls, logits: Tensor, tokens: Tensor, row: Tensor) -> Reading:
        """From logits ``[n, vocabulary]`` at the cells where ``tokens`` ``[n]`` are asked for."""
        tokens, row = tokens.to(logits.device), row.to(logits.device)
        logs = log_softmax(logits)
        return cls(logs.gather(1, tokens.unsqueeze(1)).squeeze(1), logs.detach().argmax(-1) == tokens, row)

    def nll(self, group: Tensor) -> Tensor:
        """Negative log-likelihood, mean over tries of the mean over each try's tokens; group: ``[pairs]`` their try."""
        weight = shares(group.to(self.row.device)[self.row])
        return -(self.logs * weight.to(self.logs.dtype)).sum()

    def all_right(self) -> tuple[float, float]:
        """How many pairs have every token right, and of how many."""
        asked, right = torch.bincount(self.row), torch.bincount(self.row[self.right], minlength=int(self.row.max()) + 1)
        pairs = asked > 0
        return float((pairs & (asked == right)).sum()), float(pairs.sum())

    def probability(self) -> tuple[float, float]:
        """Sum of the tokens' probabilities, and how many there are."""
        return float(self.logs.detach().exp().sum()), float(len(self.logs))

    def surprise(self) -> tuple[float, float]:
        """Sum of the tokens' negative log-likelihoods, and how many there are."""
        return -float(self.logs.detach().sum()), float(len(self.logs))


def divergence(base: Tensor, edited: Tensor, group: Tensor) -> Tensor:
    """``KL(base || edited)``, mean over tries of the mean over each try's positions; the base is detached.

    Args:
        base, edited: ``[n, vocabulary]`` logits. group: ``[n]`` which try each position is of.
    """
    before, after = log_softmax(base.detach()), log_softmax(edited)
    each = (before.exp() * (before - after)).sum(-1)
    return (each * shares(group.to(each.device)).to(each.dtype)).sum()


def measured(total: Tensor, losses: Mapping[str, Tensor], edits: int) -> dict[str, tuple[float, float]]:
    """Losses as values that are averaged over edits: ``loss/total`` and ``loss/`` with each part's name."""
    every = {"total": total, **losses}
    return {f"loss/{name}": (float(loss.detach()) * edits, float(edits)) for name, loss in every.items()}
