"""Losses that editors are trained with, in float32 (float64 stays)."""

from __future__ import annotations

import torch
from torch import Tensor


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities over the last dimension, in float32 at least."""
    return torch.log_softmax(logits.to(torch.promote_types(torch.float32, logits.dtype)), dim=-1)


def token_nll(logits: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of ``-log p(id)`` over all tokens of a batch that the mask keeps (not a mean of rows' means).

    Args:
        logits: ``[..., vocabulary]``, each position's the one that predicts the id at the same place of ``ids``.
        ids: ``[...]``. mask: ``[...]``, 1 for what counts; all count when it is None. One must at least.
    """
    logits, ids = _kept(logits, mask), _kept(ids, mask)
    return -log_softmax(logits).gather(-1, ids.unsqueeze(-1)).mean()


def kl(base: Tensor, edited: Tensor, mask: Tensor | None = None) -> Tensor:
    """``KL(p_base || p_edited)`` over the vocabulary, mean over positions that the mask keeps; the base is detached.

    Args:
        base, edited: ``[..., vocabulary]`` logits. mask: ``[...]``, as in :func:`token_nll`.

    Equal logits give exactly 0, and what the mask leaves out has no influence, whatever it is.
    """
    before = log_softmax(_kept(base, mask).detach())
    after = log_softmax(_kept(edited, mask))
    return (before.exp() * (before - after)).sum(dim=-1).mean()


def binary_kl(base: Tensor, edited: Tensor) -> Tensor:
    """``KL`` of Bernoulli distributions given by their logits ``[n]``, mean over ``n``; the base is detached."""
    dtype = torch.promote_types(torch.float32, base.dtype)
    pairs = [torch.stack([each.to(dtype), torch.zeros_like(each, dtype=dtype)], dim=-1) for each in (base, edited)]
    return kl(pairs[0], pairs[1])


def _kept(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values[mask.to(device=values.device, dtype=torch.bool)]
