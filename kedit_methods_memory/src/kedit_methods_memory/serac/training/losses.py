"""SERAC's losses (Mitchell et al. 2022, sections 3.3 and A), in float32."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps


def log1mexp(logs: Tensor) -> Tensor:
    """``log(1 - exp(logs))`` for ``logs <= 0``, exact near 0; at 0 itself the log of the machine epsilon."""
    apart = -torch.expm1(logs)
    # a subnormal number's slope is infinite, so it counts as 0
    return torch.log(torch.where(apart < torch.finfo(apart.dtype).tiny, EPS, apart))


def scope_loss(inside: Tensor, outside: Tensor) -> Tensor:
    """Balanced binary loss of log-similarities: ``mean(-inside) + mean(-log(1 - exp(outside)))``.

    Args:
        inside: ``[p]`` of prompts and the entries they belong to; outside: ``[n]`` of prompts and entries they do not.
    """
    return -inside.mean() - log1mexp(outside).mean()


def mixture(base: Tensor, counterfactual: Tensor, similarity: Tensor) -> Tensor:
    """Log-probabilities ``log((1 - s) softmax(base) + s softmax(counterfactual) + eps)``.

    The original's soft weighting: it is no distribution of the base's even where ``s`` is 0.

    Args:
        base, counterfactual: ``[n, vocabulary]`` logits. similarity: ``[n]`` in [0, 1].
    """
    weight = similarity.float().unsqueeze(-1)
    mixed = (1 - weight) * torch.softmax(base.float(), -1) + weight * torch.softmax(counterfactual.float(), -1)
    return torch.log(mixed + EPS)


def token_nll(logprobs: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``-log p`` over all target tokens of a batch. logprobs: ``[n, vocabulary]``; targets: ``[n]`` ids."""
    return -logprobs.gather(1, targets.unsqueeze(1)).mean()


def divergence(base: Tensor, other: Tensor) -> Tensor:
    """``KL(base || other)``, mean over positions; both ``[n, vocabulary]`` log-probabilities, the base detached."""
    base = base.detach()
    return (base.exp() * (base - other)).sum(dim=-1).mean()
