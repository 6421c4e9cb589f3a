"""One pass over a corpus for the statistics of all layers asked for.

Every block's keys are read in the same forward, which stops after the deepest; sums are kept in float64; rows are told
by the mask, never by the padding id. A pass may be interrupted: partial sums are kept, and a later call goes on from
them to the very same sums.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from attrs import define, field, frozen
from torch import Tensor

from kedit_core.editing import progress
from kedit_core.errors import InputError
from kedit_core.forward import Batch, ForwardTools, Side, Site, buckets
from kedit_methods_locate.stats.corpus import Rows
from kedit_methods_locate.stats.store import read_tensors, write_tensors

_CHUNK = 256  # documents between two points where a pass can be taken up again
_TOKENS = 4096  # of one forward
_BLOCK = 1024  # columns of one tile of the product
_WIDE = 4096  # up to here products are formed in float64


@define(eq=False)
class Sums:
    """Running sums of one or more layers.

    Attributes:
        totals: layer -> ``[in, in]`` float64.
        count: tokens, the same for every layer.
        documents: rows that were read.
        position: rows of the sample that are done (empty ones count).
    """

    totals: dict[int, Tensor]
    count: int = 0
    documents: int = 0
    position: int = 0


@frozen(kw_only=True)
class Partial:
    """Where a pass keeps its partial sums, and what they must have been made from to be taken up again."""

    path: Path
    key: str
    every: float = field(default=60.0)

    def save(self, sums: Sums) -> None:
        """Write them, atomically."""
        meta = {"partial": self.key, "count": sums.count, "documents": sums.documents, "position": sums.position}
        write_tensors(self.path, {f"{layer}.total": total.cpu() for layer, total in sums.totals.items()}, meta)

    def load(self, layers: Sequence[int]) -> Sums | None:
        """What an interrupted pass left, or None when there is nothing usable."""
        if not self.path.is_file():
            return None
        try:
            tensors, meta = read_tensors(self.path)
        except InputError:
            return None
        if meta.get("partial") != self.key or set(tensors) != {f"{layer}.total" for layer in layers}:
            return None
        totals = {layer: tensors[f"{layer}.total"] for layer in layers}
        return Sums(totals, int(meta["count"]), int(meta["documents"]), int(meta["position"]))


def collect(
    forward: ForwardTools,
    layers: Sequence[int],
    rows: Rows,
    *,
    skip_first_token: bool = False,
    max_tokens: int | None = None,
    batch_tokens: int = _TOKENS,
    side: Side = "right",
    partial: Partial | None = None,
    show: progress.Progress = progress.silent,
) -> Sums:
    """Sums of ``k k^T`` over the rows' tokens, for every layer of ``layers``, in one pass.

    Args:
        skip_first_token: leave each row's first token out.
        max_tokens: stop after the row with which this many tokens are reached; None for all rows.
        batch_tokens: tokens of one forward, padding included; changes nothing but rounding.
        side: padding side; changes nothing but rounding.
        partial: keep partial sums there, and go on from those found.

    Memory: the sums (8 m^2 bytes a layer) and one batch's keys. Raises InputError when the rows hold no token.
    """
    layers = sorted(set(layers))
    widths = {layer: forward.view.mlp_size(layer) for layer in layers}
    sums = (partial.load(layers) if partial else None) or Sums(
        {layer: torch.zeros(width, width, dtype=torch.float64) for layer, width in widths.items()}
    )
    saved = time.monotonic()
    names = ", ".join(str(layer) for layer in layers)
    with show(f"statistics of layer{'s' * (len(layers) > 1)} {names}", total=float(rows.total)) as step:
        step.advance(sums.position)
        while sums.position < rows.total and not (max_tokens and sums.count >= max_tokens):
            stop = min(sums.position + _CHUNK, rows.total)
            chunk = _upto(rows.chunk(sums.position, stop), max_tokens and max_tokens - sums.count, skip_first_token)
            _add(forward, sums, chunk, skip_first_token, batch_tokens, side)
            step.advance(stop - sums.position)
            sums.position = stop
            if partial and time.monotonic() - saved >= partial.every:
                partial.save(sums)
                saved = time.monotonic()
    if not sums.count:
        raise InputError("the corpus holds no token to take statistics from; give another text")
    return sums


def _upto(rows: list[Sequence[int]], most: int | None, skip_first: bool) -> list[Sequence[int]]:
    """Rows up to and with the one that reaches ``most`` tokens."""
    if most is None:
        return rows
    kept, count = [], 0
    for row in rows:
        if count >= most:
            break
        kept.append(row)
        count += len(row) - skip_first
    return kept


def _add(
    forward: ForwardTools, sums: Sums, rows: list[Sequence[int]], skip_first: bool, batch_tokens: int, side: Side
) -> None:
    sites = {layer: Site(layer, "mlp_out", "input") for layer in sums.totals}
    deepest = max(sums.totals)
    sums.documents += len(rows)
    for group in buckets([len(row) for row in rows], batch_tokens):
        batch = forward.batch([rows[i] for i in group], side=side)
        run = forward.run(batch, capture=tuple(sites.values()), stop_after=deepest)
        chosen = _chosen(batch, skip_first)
        sums.count += int(chosen.sum())
        for layer, site in sites.items():
            values = run.activations[site]
            if values.is_cuda and not sums.totals[layer].is_cuda:
                # m x m numbers need not cross for every batch
                sums.totals[layer] = sums.totals[layer].to(values.device)
            add_products(sums.totals[layer], values[chosen.to(values.device)])


def _chosen(batch: Batch, skip_first: bool) -> Tensor:
    """``[batch, seq]`` bool: the tokens that count."""
    chosen = batch.attention_mask.bool()
    if skip_first:
        columns = torch.arange(batch.width, device=chosen.device)
        chosen = chosen & (columns[None, :] != batch.starts[:, None])
    return chosen


def add_products(total: Tensor, keys: Tensor) -> None:
    """``total += keys^T keys`` for ``keys`` ``[n, in]``, the products in float64 up to width 4096 and in float32 (never
    TF32) above; wide ones in tiles of one triangle, which are mirrored."""
    width = total.shape[0]
    wide = keys.to(torch.float64 if width <= _WIDE else torch.float32)
    with _full_float32():
        if width <= _BLOCK:
            total += (wide.T @ wide).to(total)
            return
        for start in range(0, width, _BLOCK):
            rows = slice(start, start + _BLOCK)
            for other in range(start, width, _BLOCK):
                columns = slice(other, other + _BLOCK)
                tile = (wide[:, rows].T @ wide[:, columns]).to(total)
                total[rows, columns] += tile
                if other != start:
                    total[columns, rows] += tile.T


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 or other shortening of float32 products inside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
