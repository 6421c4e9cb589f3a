"""A run without gradients in portions of rows, so that its activations keep within a memory budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from attrs import evolve
from torch import Tensor

from kedit_core.forward.batch import Batch
from kedit_core.forward.sites import AnySite, Injection

if TYPE_CHECKING:
    from kedit_core.forward.run import ForwardTools, Run
    from kedit_core.models import ModelView


def portion(view: ModelView, batch: Batch, kept: int, budget: int | None) -> int:
    """How many rows fit into ``budget`` bytes when ``kept`` whole activations are kept; at least one."""
    if budget is None:
        return batch.rows
    width, inner = view.hidden_size, view.mlp_size(0)
    # one block's working set (residual, attention, MLP), and what is kept
    cell = 8 * width + 3 * inner + kept * max(width, inner)
    size = next(view.model.parameters()).element_size()
    return int(max(1, min(batch.rows, budget // max(1, cell * size * batch.width))))


def run_portions(
    tools: ForwardTools,
    batch: Batch,
    size: int,
    capture: Sequence[AnySite],
    inject: Sequence[Injection],
    at: Tensor | None,
    stop_after: int | None,
    logits_at: Tensor | None,
) -> Run:
    """The same as one run over all rows, ``size`` rows at a time."""
    parts: list[Run] = []
    order_at: list[Tensor] = []
    order_logits: list[Tensor] = []
    for start in range(0, batch.rows, size):
        rows = slice(start, min(start + size, batch.rows))
        here_at, index_at = _within(at, rows)
        here_logits, index_logits = _within(logits_at, rows)
        order_at.append(index_at)
        order_logits.append(index_logits)
        parts.append(
            tools.run(
                batch.select(rows),
                capture=capture,
                inject=[_narrowed(injection, rows) for injection in inject],
                at=here_at,
                stop_after=stop_after,
                logits_at=here_logits,
            )
        )
    back = None if at is None else torch.argsort(torch.cat(order_at))
    activations: dict[AnySite, Tensor] = {}
    for site in capture:
        joined = torch.cat([part.activations[site] for part in parts])
        activations[site] = joined if back is None else joined[back.to(joined.device)]
    if logits_at is None:
        return evolve(parts[0], activations=activations, logits=None)
    logits = torch.cat([part.logits for part in parts if part.logits is not None])
    order = torch.argsort(torch.cat(order_logits)).to(logits.device)
    return evolve(parts[0], activations=activations, logits=logits[order])


def _within(cells: Tensor | None, rows: slice) -> tuple[Tensor | None, Tensor]:
    if cells is None:
        return None, torch.empty(0, dtype=torch.long)
    cells = cells.cpu()
    chosen = ((cells[:, 0] >= rows.start) & (cells[:, 0] < rows.stop)).nonzero().flatten()
    return cells[chosen] - torch.tensor([rows.start, 0]), chosen


def _narrowed(injection: Injection, rows: slice) -> Injection:
    cells, chosen = _within(torch.stack([injection.rows.cpu(), injection.positions.cpu()], dim=1), rows)
    if cells is None:
        return injection
    values = injection.values if injection.values.dim() == 1 else injection.values[chosen.to(injection.values.device)]
    return evolve(injection, rows=cells[:, 0], positions=cells[:, 1], values=values)
