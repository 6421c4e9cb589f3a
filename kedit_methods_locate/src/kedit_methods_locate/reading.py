"""Keys and present states of many facts, read layer after layer while the layers are being written.

Blocks below the first edited one are run once; after a layer was written, only it and those behind are run again
(specification: MEMIT, sections 3 and 7). The bare prompts go as far as the layer whose output is to be moved, the
others in contexts no further than the layer whose keys are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.forward import ForwardTools, Side, Site, Span, buckets, cells
from kedit_methods_locate.hparams.spread import KeyWeights
from kedit_methods_locate.keys import average
from kedit_methods_locate.keys import read as read_once
from kedit_methods_locate.rows import Rewrite, Row

_TOKENS = 4096  # of one batch


def key_weights(contexts: int, kind: KeyWeights) -> list[float]:
    """Weight of each context in a key's average, bare prompt first; they sum to 1.

    ``grouped``: the mean of the bare group and of the others' (MEMIT's code): 1/2 and the rest in equal parts.
    """
    if kind == "uniform" or contexts == 1:
        return [1 / contexts] * contexts
    return [0.5] + [0.5 / (contexts - 1)] * (contexts - 1)


@frozen(eq=False)
class _Part:
    """Some rows of equal kind: which they are, where they stand in the flat order, and their resumable pass."""

    numbers: tuple[int, ...]
    at: Tensor
    span: Span


class Reader:
    """Rows of some facts between blocks ``first`` and ``last``, read with the weights as they are.

    Memory: the residual stream of all rows up to their subject's token.

    Args:
        forward: tools of the model.
        rewrites: the facts, all with equally many contexts.
        first, last: the first edited block, and the one whose output is to be moved.
        weights: of the contexts in a key's average.
    """

    def __init__(
        self,
        forward: ForwardTools,
        rewrites: Sequence[Rewrite],
        first: int,
        last: int,
        weights: Sequence[float],
        *,
        side: Side = "right",
        max_tokens: int = _TOKENS,
    ) -> None:
        self.weights = weights
        self._forward = forward
        self._bare = [_trimmed(forward, each.rows[0]) for each in rewrites]
        self._others = [_trimmed(forward, row) for each in rewrites for row in each.rows[1:]]
        self._parts = {
            bare: [_part(forward, rows, group, first, last, side) for group in _groups(rows, max_tokens)]
            for bare, rows in ((True, self._bare), (False, self._others))
        }

    def read(self, keys: Sequence[Site], states: Sequence[Site]) -> dict[Site, Tensor]:
        """Averaged keys, ``[n, in]``, and states in the bare prompt, ``[n, hidden]``, in one pass; at least float32."""
        bare = self._collect(True, [*keys, *states])
        others = self._collect(False, keys) if self._others and keys else {}
        return self._averaged(keys, bare, others) | {site: _wide(bare[site]) for site in states}

    def advance(self) -> None:
        """Go on behind the block that was written."""
        for parts in self._parts.values():
            for part in parts:
                part.span.advance()

    def keys_now(self, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """Averaged keys at any sites with the weights as they are, in one pass from the embeddings."""
        bare = read_once(self._forward, self._bare, sites)
        others = read_once(self._forward, self._others, sites) if self._others else {}
        return self._averaged(sites, bare, others)

    def _averaged(
        self, sites: Sequence[Site], bare: dict[Site, Tensor], others: dict[Site, Tensor]
    ) -> dict[Site, Tensor]:
        found = {}
        for site in sites:
            each = bare[site][:, None]
            if others:
                each = torch.cat([each, others[site].view(len(self._bare), -1, each.shape[-1])], dim=1)
            found[site] = average(each, self.weights)
        return found

    def _collect(self, bare: bool, sites: Sequence[Site]) -> dict[Site, Tensor]:
        found: dict[Site, list[Tensor]] = {site: [] for site in sites}
        order: list[int] = []
        for part in self._parts[bare]:
            values = part.span.read(sites, part.at)
            order += part.numbers
            for site in sites:
                found[site].append(values[site])
        back = torch.argsort(torch.tensor(order))
        return {site: torch.cat(values)[back.to(values[0].device)] for site, values in found.items()}


def _trimmed(forward: ForwardTools, row: Row) -> Row:
    """A decoder's row up to the token that is read; an encoder's whole, since it reads both ways."""
    return row if forward.view.is_encoder_decoder else row.cut()


def _groups(rows: Sequence[Row], max_tokens: int) -> list[list[int]]:
    return [list(group) for group in buckets([len(row.ids) for row in rows], max_tokens)] if rows else []


def _part(forward: ForwardTools, rows: Sequence[Row], group: Sequence[int], first: int, last: int, side: Side) -> _Part:
    batch = forward.batch([rows[i].ids for i in group], side=side)
    at = cells(range(len(group)), batch.columns([rows[i].index for i in group]))
    return _Part(tuple(group), at, forward.span(batch, first, last))


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
