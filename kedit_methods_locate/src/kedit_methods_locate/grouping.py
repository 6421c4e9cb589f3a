"""Which requests a value search takes together, and what memory they need."""

from __future__ import annotations

from collections.abc import Sequence

from kedit_core.models import ModelView
from kedit_methods_locate.rows import Rewrite

# A row costs as much as the longest of its group, so a group of at least this many requests (fewer would waste a pass)
# ends where the next has a longer tail.
_ENOUGH = 16


def grouped(view: ModelView, rewrites: Sequence[Rewrite], layer: int, memory_budget: int | None) -> list[list[int]]:
    """Requests in groups that fit the budget, those with equally many tokens after the subject together."""

    def likeness(index: int) -> tuple[int, int]:
        return _behind(rewrites[index]), max(len(row.ids) for row in rewrites[index].rows)

    groups: list[list[int]] = []
    used = 0
    for index in sorted(range(len(rewrites)), key=likeness):
        need = bytes_needed(view, rewrites[index], layer)
        full = memory_budget is not None and used + need > memory_budget
        if not groups or full or _longer(rewrites, groups[-1], index):
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += need
    return groups


def _longer(rewrites: Sequence[Rewrite], group: Sequence[int], index: int) -> bool:
    return len(group) >= _ENOUGH and _behind(rewrites[index]) > _behind(rewrites[group[0]])


def _behind(rewrite: Rewrite) -> int:
    """Tokens of a row from the one that is written on."""
    return max(len(row.ids) - row.index for row in rewrite.rows) + len(rewrite.target) - 1


def bytes_needed(view: ModelView, rewrite: Rewrite, layer: int) -> int:
    """Roughly what one request's search needs: activations and gradients of the blocks behind, prefix, logits.

    Block ``layer`` itself is counted: a vector on the attention's output goes through its MLP.
    """
    rows = len(rewrite.rows) + 1
    width, inner = view.hidden_size, view.mlp_size(layer)
    blocks = view.num_layers - layer
    tail = rows * _behind(rewrite) * blocks * (16 * width + 5 * inner)
    prefix = rows * max(len(row.ids) for row in rewrite.rows) * blocks * 2 * width
    logits = (rows * len(rewrite.target)) * view.vocab_size * 4
    return 4 * (tail + prefix + logits)
