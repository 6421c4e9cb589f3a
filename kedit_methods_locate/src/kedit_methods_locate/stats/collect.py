"""One pass over a corpus for the statistics of all layers asked for.

Every block's keys are read in the same forward, which stops after the deepest; sums are kept in float64; rows are told
by the mask, never by the padding id. A pass may be interrupted: partial sums are kept, and a later call goes on from
them to the very same sums.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from attrs import define, field, frozen
from torch import Tensor

from kedit_core.editing import progress
from kedit_core.errors import InputError
from kedit_core.forward import Batch, ForwardTools, Side, Site, buckets, pack, packed_rows
from kedit_methods_locate.hparams.spread import Projection
from kedit_methods_locate.stats.corpus import Rows
from kedit_methods_locate.stats.ranks import Ranks
from kedit_methods_locate.stats.source import width_of
from kedit_methods_locate.stats.store import read_tensors, write_tensors

_CHUNK = 256  # documents between two points where a pass can be taken up again
_TOKENS = 4096  # of one forward
_ROW = 128  # tokens of a packed row, unless a text is longer: attention within a row costs its square
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
        seen: tokens of all processes together, where a limit asks for that.
    """

    totals: dict[int, Tensor]
    count: int = 0
    documents: int = 0
    position: int = 0
    seen: int = 0


@frozen(kw_only=True)
class Partial:
    """Where a pass keeps its partial sums, and what they must have been made from to be taken up again."""

    path: Path
    key: str
    every: float = field(default=60.0)

    def save(self, sums: Sums) -> None:
        """Write them, atomically."""
        names = ("count", "documents", "position", "seen")
        meta = {"partial": self.key, **{name: getattr(sums, name) for name in names}}
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
        return Sums(totals, *(int(meta.get(name, 0)) for name in ("count", "documents", "position", "seen")))


def collect(
    forward: ForwardTools,
    layers: Sequence[int],
    rows: Rows,
    *,
    part: Projection = "mlp_out",
    skip_first_token: bool = False,
    max_tokens: int | None = None,
    batch_tokens: int = _TOKENS,
    side: Side = "right",
    partial: Partial | None = None,
    ranks: Ranks | None = None,
    show: progress.Progress = progress.silent,
) -> Sums:
    """Sums of ``k k^T`` over the rows' tokens, for every layer of ``layers``, in one pass.

    Where the model keeps texts in one row apart, rows are packed and nothing is padded.

    Args:
        part: the projection whose inputs are summed.
        skip_first_token: leave each row's first token out.
        max_tokens: stop after the row with which this many tokens are reached; None for all rows.
        batch_tokens: tokens of one forward, padding included; changes nothing but rounding.
        side: padding side, where rows are padded; changes nothing but rounding.
        partial: keep partial sums there, and go on from those found.
        ranks: the processes that share the pass; each returns the sums of all.

    Memory: the sums (8 m^2 bytes a layer) and one batch's keys. Raises InputError when the rows hold no token.
    """
    layers, ranks = sorted(set(layers)), ranks or Ranks.now()
    widths = {layer: width_of(forward.view, layer, part) for layer in layers}
    sums = (partial.load(layers) if partial else None) or Sums(
        {layer: torch.zeros(width, width, dtype=torch.float64) for layer, width in widths.items()}
    )
    summing = _Summing(forward, {layer: Site(layer, part, "input") for layer in layers}, skip_first_token, side)
    saved = time.monotonic()
    names = ", ".join(str(layer) for layer in layers)
    with show(f"statistics of layer{'s' * (len(layers) > 1)} {names}", total=float(rows.total)) as step:
        step.advance(sums.position)
        while sums.position < rows.total and not (max_tokens and sums.seen >= max_tokens):
            stop = min(sums.position + _CHUNK, rows.total)
            mine = ranks.mine(sums.position // _CHUNK)
            if mine or max_tokens:  # with a limit every process counts all texts
                chunk = rows.chunk(sums.position, stop)
                chunk, count = _upto(chunk, max_tokens and max_tokens - sums.seen, skip_first_token)
                sums.seen += count
                if mine:
                    summing.add(sums, chunk, batch_tokens)
            step.advance(stop - sums.position)
            sums.position = stop
            if partial and time.monotonic() - saved >= partial.every:
                partial.save(sums)
                saved = time.monotonic()
    _add_up(sums, ranks)
    if not sums.count:
        raise InputError("the corpus holds no token to take statistics from; give another text")
    return sums


def _add_up(sums: Sums, ranks: Ranks) -> None:
    counts = torch.tensor([sums.count, sums.documents])
    ranks.add_up([counts, *sums.totals.values()])
    sums.count, sums.documents = counts.tolist()


def _upto(rows: list[Sequence[int]], most: int | None, skip_first: bool) -> tuple[list[Sequence[int]], int]:
    """Rows up to and with the one that reaches ``most`` tokens, and how many tokens these have."""
    kept: list[Sequence[int]] = []
    count = 0
    for row in rows:
        if most is not None and count >= most:
            break
        kept.append(row)
        count += len(row) - skip_first
    return kept, count


class _Summing:
    """Runs texts through the model and adds their keys' products."""

    def __init__(self, forward: ForwardTools, sites: Mapping[int, Site], skip_first: bool, side: Side) -> None:
        self._forward, self._sites, self._skip_first, self._side = forward, dict(sites), skip_first, side
        self._deepest = max(sites)

    def add(self, sums: Sums, texts: list[Sequence[int]], batch_tokens: int) -> None:
        sums.documents += len(texts)
        for batch in self._batches(texts, batch_tokens):
            run = self._forward.run(batch, capture=tuple(self._sites.values()), stop_after=self._deepest)
            chosen = self._chosen(batch)
            sums.count += int(chosen.sum())
            for layer, site in self._sites.items():
                values = run.activations[site]
                if values.is_cuda and not sums.totals[layer].is_cuda:
                    # m x m numbers need not cross for every batch
                    sums.totals[layer] = sums.totals[layer].to(values.device)
                add_products(sums.totals[layer], values[chosen.to(values.device)])

    def _batches(self, texts: list[Sequence[int]], batch_tokens: int) -> Iterator[Batch]:
        forward, lengths = self._forward, [len(text) for text in texts]
        if not texts:
            return
        if self._side == "right" and forward.packs:
            capacity = max(_ROW, *lengths)
            rows = packed_rows(lengths, capacity)
            at_once = max(batch_tokens // capacity, 1)
            for start in range(0, len(rows), at_once):
                yield pack(texts, rows[start : start + at_once], forward.boundary.pad_id).to(forward.device)
            return
        for group in buckets(lengths, batch_tokens):
            yield forward.batch([texts[i] for i in group], side=self._side)

    def _chosen(self, batch: Batch) -> Tensor:
        """``[batch, seq]`` bool: the tokens that count."""
        chosen = batch.attention_mask.bool()
        return chosen & (batch.position_ids != 0) if self._skip_first else chosen


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
