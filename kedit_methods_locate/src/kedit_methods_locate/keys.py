"""Keys: what the MLP's down-projection of a layer reads at a fact's token (Meng et al. 2022, equation 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kedit_core.forward import ForwardTools, Side, Site, buckets, cells
from kedit_methods_locate.rows import Row

# Tokens in one forward of reading; memory is small, as nothing is kept but one vector per row.
_TOKENS = 4096


def read(
    forward: ForwardTools,
    rows: Sequence[Row],
    sites: Sequence[Site],
    *,
    max_tokens: int = _TOKENS,
    side: Side = "right",
) -> dict[Site, Tensor]:
    """Activations at each row's token: site -> ``[rows, width]``, in the model's dtype.

    One forward for all sites, in length buckets, stopped after the deepest layer asked for.
    """
    found: dict[Site, list[Tensor | None]] = {site: [None] * len(rows) for site in sites}
    deepest = max(site.layer for site in sites)
    for group in buckets([len(row.ids) for row in rows], max_tokens):
        batch = forward.batch([rows[i].ids for i in group], side=side)
        at = cells(range(len(group)), batch.columns([rows[i].index for i in group]))
        run = forward.run(batch, capture=tuple(sites), at=at, stop_after=deepest)
        for site in sites:
            for i, value in zip(group, run.activations[site], strict=True):
                found[site][i] = value
    return {site: torch.stack([v for v in values if v is not None]) for site, values in found.items()}


def average(values: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Mean over contexts: ``[..., J, width] -> [..., width]`` in at least float32; uniform unless weights are given.

    ROME takes the uniform mean, MEMIT 1/2 for the bare prompt and the rest in equal parts (memit sheet, section 3).
    """
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    if weights is None:
        return wide.mean(-2)
    share = torch.tensor(list(weights), dtype=wide.dtype, device=wide.device)
    return torch.einsum("...jw,j->...w", wide, share / share.sum())
