"""Several texts in one row, none seeing another: batches without padding."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from kedit_core.forward.batch import Batch, collate
from kedit_core.forward.sites import Site

if TYPE_CHECKING:
    from kedit_core.forward.run import ForwardTools

logger = logging.getLogger(__name__)

_SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
_SAME_HALF = 0.05


def packed_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Texts by number, grouped into rows of at most ``capacity`` tokens (a longer text has a row of its own).

    Longest first, each into the fullest row that has room: rows come out nearly full.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [i for i, room in enumerate(free) if room >= lengths[number]]
        if fits:
            best = min(fits, key=lambda i: free[i])
            rows[best].append(number)
            free[best] -= lengths[number]
        else:
            rows.append([number])
            free.append(max(capacity - lengths[number], 0))
    return rows


def pack(texts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """A batch with several texts in each row, told apart by positions that start again at 0.

    Args:
        texts: token ids of each text.
        rows: which texts each row holds, in order.
        pad_id: fills what is left of a row; ``attention_mask`` is 0 there.
    """
    whole = [[token for number in row for token in texts[number]] for row in rows]
    batch = collate(whole, pad_id)
    positions = torch.zeros_like(batch.position_ids)
    for i, row in enumerate(rows):
        counted = [position for number in row for position in range(len(texts[number]))]
        positions[i, : len(counted)] = torch.tensor(counted)
        rest = positions.shape[1] - len(counted)
        # the filling is a text of its own, so that nothing sees it
        positions[i, len(counted) :] = torch.arange(rest)
    return Batch(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=positions,
        lengths=batch.lengths,
        packed=True,
    )


def can_pack(tools: ForwardTools, trusted: dict[tuple[Any, ...], bool]) -> bool:
    """Whether this model keeps the texts of a packed row apart: tried once, on the last block's states."""
    kind = ("packing",)
    if kind not in trusted:
        trusted[kind] = _apart(tools)
        if not trusted[kind]:
            logger.info("%s does not keep packed texts apart; rows are padded", type(tools.model).__name__)
    return trusted[kind]


def _apart(tools: ForwardTools) -> bool:
    if tools.view.is_encoder_decoder:
        return False
    limit = tools.view.vocab_size
    texts = [[(7 * i + j) % limit for j in range(length)] for i, length in enumerate((5, 3, 4), start=1)]
    site = Site(tools.view.num_layers - 1, "block")
    try:
        together = tools.run(pack(texts, [[0, 1, 2]], tools.boundary.pad_id).to(tools.device), capture=(site,))
        apart = tools.run(tools.batch(texts), capture=(site,))
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return False
    wanted = torch.cat([apart.activations[site][i, : len(text)] for i, text in enumerate(texts)])
    got = together.activations[site][0]
    bound = _SAME.get(got.dtype, _SAME_HALF) * max(1.0, float(wanted.abs().max()))
    return bool((got - wanted).abs().max() <= bound)
