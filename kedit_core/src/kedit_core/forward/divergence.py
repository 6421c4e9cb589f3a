"""How far apart two states of a model are after the same targets, read in turn, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.forward.batch import Side, buckets
from kedit_core.forward.run import ForwardTools
from kedit_core.forward.scoring import target_distributions
from kedit_core.forward.tokens import Pair

Showing: TypeAlias = Callable[[], AbstractContextManager[Any]]

_SHARE = 4  # two distributions, their difference and the probabilities, where scoring holds one


def pair_divergences(
    before: ForwardTools,
    now: ForwardTools,
    pairs: Sequence[tuple[Pair, Pair]],
    *,
    showing_before: Showing,
    batch_tokens: int = 8192,
    padding_side: Side = "right",
) -> list[Tensor]:
    """``KL(before || now)`` of the next-token distributions at every target token, ``[T]`` float32 nats on the CPU.

    Args:
        before, now: what reads the two; the same tools where only ``showing_before`` tells them apart.
        pairs: prompt and target as ``before`` and as ``now`` reads them; the prompts may differ, the targets not.
        showing_before: entered while ``before`` reads.
        batch_tokens: a batch holds a quarter of so many tokens, since more is held of each than in scoring.

    Memory: four times ``target tokens x vocabulary`` float32 of one batch.

    Raises:
        InputError: targets that differ, vocabularies that do, or a row longer than the model's positions.
    """
    if any(old.target_ids != new.target_ids for old, new in pairs):
        raise InputError("distributions can be compared after the same target tokens only")
    found: dict[int, Tensor] = {}
    for group in _batches(pairs, batch_tokens // _SHARE):
        with showing_before():
            old = target_distributions(before, [pairs[i][0] for i in group], group, padding_side)
        new = target_distributions(now, [pairs[i][1] for i in group], group, padding_side)
        if old.shape != new.shape:
            raise InputError(f"vocabularies of {old.shape[1]} and {new.shape[1]} tokens cannot be compared")
        divergence = _divergence(old, new.to(old.device)).cpu()
        parts = torch.split(divergence, [len(pairs[i][0].target_ids) for i in group])
        found.update(zip(group, parts, strict=True))
    return [found[i] for i in range(len(pairs))]


def _batches(pairs: Sequence[tuple[Pair, Pair]], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of what runs together."""
    lengths = [max(len(old.prompt_ids), len(new.prompt_ids)) + 2 * len(old.target_ids) for old, new in pairs]
    # apart, so that a row that is read alike twice is padded alike, too, and not a rounding apart
    for same in (True, False):
        chosen = [i for i, (old, new) in enumerate(pairs) if (old.prompt_ids == new.prompt_ids) is same]
        for group in buckets([lengths[i] for i in chosen], batch_tokens):
            yield [chosen[i] for i in group]


def _divergence(old: Tensor, new: Tensor) -> Tensor:
    weights = old.exp()
    # a token that the old distribution rules out counts nothing, whatever the new one says of it
    terms = (old - new).mul_(weights).masked_fill_(weights == 0, 0.0)
    # the sum is never negative but for rounding
    return terms.sum(dim=-1).clamp_(min=0.0)
