"""Rows of token ids made into one padded batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from attrs import evolve, frozen
from torch import LongTensor, Tensor

from kedit_core.errors import InputError

Side: TypeAlias = Literal["left", "right"]


@frozen(eq=False)
class Batch:
    """Padded rows. Positions given to kedit's forward tools are columns of ``input_ids`` (see :meth:`columns`).

    Attributes:
        input_ids: ``[batch, seq]``; what stands at padded columns is meaningless.
        attention_mask: ``[batch, seq]``, 1 for tokens and 0 for padding.
        position_ids: ``[batch, seq]``, 0, 1, ... over each row's own tokens whatever the padding side.
        lengths: ``[batch]`` tokens per row.
        side: where the padding is.
        decoder_input_ids: ``[batch, target]``, right padded; encoder-decoder models only.
        prompt_ends: ``[batch]`` column of each prompt's last token, or None when the whole row is the prompt.
        members: ``[batch]`` which of the caller's texts each row is, for operations that act on some of them only.
        packed: rows hold several texts, told apart by their positions (see :mod:`kedit_core.forward.packing`).
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    lengths: Tensor
    side: Side = "right"
    decoder_input_ids: Tensor | None = None
    prompt_ends: Tensor | None = None
    members: Tensor | None = None
    packed: bool = False

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.input_ids.shape[0])

    @property
    def width(self) -> int:
        """Number of columns, padding included."""
        return int(self.input_ids.shape[1])

    @property
    def starts(self) -> Tensor:
        """``[batch]`` column of each row's first token."""
        return self.width - self.lengths if self.side == "left" else torch.zeros_like(self.lengths)

    def columns(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Columns ``[batch]`` of one token index per row (negative ones count from the row's end).

        Raises:
            InputError: an index outside its row, or not one per row.
        """
        index = torch.as_tensor(indices, dtype=torch.long, device=self.lengths.device)
        if index.shape != self.lengths.shape:
            raise InputError(f"one token index per row is needed: {self.rows} rows, shape {tuple(index.shape)}")
        index = torch.where(index < 0, index + self.lengths, index)
        if bool(((index < 0) | (index >= self.lengths)).any()):
            raise InputError(f"token indices {index.tolist()} go beyond rows of {self.lengths.tolist()} tokens")
        return self.starts + index

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._each(lambda t: t.to(device))

    def select(self, rows: slice | Sequence[int] | Tensor) -> Batch:
        """Some of the rows, with the same columns."""
        return self._each(lambda t: t[rows])

    def _each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            input_ids=function(self.input_ids),
            attention_mask=function(self.attention_mask),
            position_ids=function(self.position_ids),
            lengths=function(self.lengths),
            side=self.side,
            decoder_input_ids=None if self.decoder_input_ids is None else function(self.decoder_input_ids),
            prompt_ends=None if self.prompt_ends is None else function(self.prompt_ends),
            members=None if self.members is None else function(self.members),
            packed=self.packed,
        )


def collate(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    side: Side = "right",
    device: torch.device | str | None = None,
    *,
    decoder_rows: Sequence[Sequence[int]] | None = None,
    prompt_lengths: Sequence[int] | None = None,
) -> Batch:
    """Pad rows of ids to one width.

    Args:
        rows: token ids of each row, none empty.
        pad_id: what padded columns are filled with.
        side: where to pad.
        device: where the tensors go.
        decoder_rows: decoder input ids of each row (see :func:`shift_right`); encoder-decoder models only.
        prompt_lengths: tokens of each row that are its prompt, when what follows is a target.

    Raises:
        InputError: no row, or an empty one.
    """
    if not rows or not all(len(row) for row in rows):
        raise InputError("a batch needs at least one row, and every row at least one token")
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, columns] = torch.tensor(list(row), dtype=torch.long)
        mask[i, columns] = 1
    batch = Batch(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp_(min=0),
        lengths=lengths,
        side=side,
        decoder_input_ids=None if decoder_rows is None else collate(decoder_rows, pad_id).input_ids,
    )
    if prompt_lengths is not None:
        batch = evolve(batch, prompt_ends=batch.columns([n - 1 for n in prompt_lengths]))
    return batch if device is None else batch.to(device)


def shift_right(target_ids: Sequence[int], start_id: int) -> list[int]:
    """What a decoder is fed so that its output at position t is asked for ``target_ids[t]``."""
    return [start_id, *target_ids[:-1]]


def buckets(lengths: Sequence[int], max_tokens: int, shares: Sequence[int] | None = None) -> list[list[int]]:
    """Group rows of similar length so that no group, padded, holds more than ``max_tokens`` tokens.

    ``shares``: how many rows of that length each stands for; one when None. A row longer than the budget stands alone.
    Every index is in exactly one group; shorter rows come first.
    """
    groups: list[list[int]] = []
    held = 0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        share = 1 if shares is None else shares[index]
        held += share
        if groups and held * lengths[index] <= max_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
            held = share
    return groups


def cells(rows: Sequence[int] | Tensor, columns: Sequence[int] | Tensor) -> LongTensor:
    """``[n, 2]`` (row, column) pairs, as ``logits_at`` and ``at`` want them."""
    pair = (torch.as_tensor(rows, dtype=torch.long), torch.as_tensor(columns, dtype=torch.long))
    return torch.stack([t.cpu() for t in pair], dim=1)  # type: ignore[return-value]
