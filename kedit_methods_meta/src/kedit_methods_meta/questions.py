"""Prompts and answers as rows of one batch: where the model is asked, and for which tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.forward import Batch, ForwardTools, Pair, Side
from kedit_methods_meta.pairs import Relabelled


@frozen(eq=False)
class Questions:
    """Some pairs as one batch.

    Attributes:
        batch: the rows. A decoder reads the prompt and the answer (but its last token, where only the answer is asked
            for); an encoder-decoder's encoder reads the prompt, and its decoder the answer shifted right.
        cells: ``[n, 2]`` (row, column) whose next-token logits are read, row by row.
        row: ``[n]`` which pair each cell is of.
        tokens: ``[n]`` the answer's token that is asked for there; -1 where none is.
        fed: ``[n]`` whether the token that is read there is one of the answer's.

    All are where the batch is.
    """

    batch: Batch
    cells: Tensor
    row: Tensor
    tokens: Tensor
    fed: Tensor

    @property
    def asked(self) -> Tensor:
        """``[n]`` whether a cell asks for a token of the answer."""
        return self.tokens >= 0


def questions(
    forward: ForwardTools, pairs: Sequence[Pair], whole: Sequence[bool] | bool = False, side: Side = "right"
) -> Questions:
    """Lay pairs out as rows padded on one side.

    Args:
        whole: for all pairs or for each: every token of the row is a cell (of an encoder-decoder every one that the
            decoder is fed), not only those where the answer is asked for. The answer of such a pair may be empty.
    """
    every = [whole] * len(pairs) if isinstance(whole, bool) else list(whole)
    two_stacks = forward.view.is_encoder_decoder
    # a decoder has to be fed something: after an empty answer its start is all that is read
    targets = [pair.target_ids or (forward.boundary.pad_id,) for pair in pairs]
    rows = [
        pair.prompt_ids if two_stacks else (*pair.prompt_ids, *(pair.target_ids if full else pair.target_ids[:-1]))
        for pair, full in zip(pairs, every, strict=True)
    ]
    batch = forward.batch(
        rows,
        side=side,
        targets=targets if two_stacks else None,
        prompt_lengths=[len(pair.prompt_ids) for pair in pairs],
    )
    starts = batch.starts.tolist()
    cells: list[tuple[int, int]] = []
    tokens: list[int] = []
    fed: list[bool] = []
    for number, (pair, full) in enumerate(zip(pairs, every, strict=True)):
        read = max(len(pair.target_ids), 1) if two_stacks else len(rows[number])
        first = 0 if two_stacks else len(pair.prompt_ids) - 1
        offset = 0 if two_stacks else starts[number]
        labels = pair.labels if isinstance(pair, Relabelled) else pair.target_ids
        for column in range(0 if full else first, read):
            place = column - first
            cells.append((number, offset + column))
            tokens.append(labels[place] if 0 <= place < len(labels) else -1)
            fed.append(place > 0)
    home = batch.input_ids.device
    where = torch.tensor(cells, device=home)
    return Questions(batch, where, where[:, 0], torch.tensor(tokens, device=home), torch.tensor(fed, device=home))


def row_length(forward: ForwardTools, pair: Pair) -> int:
    """Tokens of the longer row that a pair makes in the model's stacks."""
    if forward.view.is_encoder_decoder:
        return max(len(pair.prompt_ids), len(pair.target_ids))
    return len(pair.prompt_ids) + len(pair.target_ids)
