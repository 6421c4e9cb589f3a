"""What an edit would take, measured on a part of it: the numbers of the ``plan`` hook where values are searched."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from attrs import evolve

from kedit_core.editing import EditContext
from kedit_core.requests import EditRequest
from kedit_methods_locate.grouping import bytes_needed
from kedit_methods_locate.hparams import ContextHyperParams
from kedit_methods_locate.hparams.spread import Projection
from kedit_methods_locate.rows import Rewrite, rewrite
from kedit_methods_locate.stats import whereabouts
from kedit_methods_locate.stats.source import width_of
from kedit_methods_locate.templates import BARE
from kedit_methods_locate.value import Values

H = TypeVar("H", bound=ContextHyperParams)

_TRIED = 2  # requests whose search is timed
_PASSES = 3  # forward passes of the timed search, so that two steps are seen
_STATISTIC = 12  # bytes for each element of a statistic in use: the sum and its factor
_FACTORISING = 16  # more while one is factorised


def search_plan(
    context: EditContext,
    requests: Sequence[EditRequest],
    hparams: H,
    layer: int,
    layers: Mapping[Projection, Sequence[int]],
    values: Callable[[EditContext, Sequence[Rewrite], H], Values],
) -> dict[str, Any]:
    """``memory_bytes``, ``seconds`` and ``notes`` of an edit with a value search at ``layer``.

    The time is that of a few steps of the search for a few of the requests, taken now on this machine, scaled to all
    steps and requests: an upper estimate, since more requests at once go faster and easy ones end early. Collecting
    statistics comes on top, and is told.

    Args:
        layers: projection -> layers whose statistics are needed.
        values: runs the search.
    """
    contexts = 1 + sum(count for _, count in hparams.context_lengths)
    templates = hparams.context_templates or (BARE, *(f"The {BARE}",) * (contexts - 1))
    rows = [rewrite(context.tokens, request, templates, hparams.fact_token) for request in requests]
    needed = [bytes_needed(context.adapter, each, layer) for each in rows]
    notes = []
    if hparams.mom2_adjustment:
        for projection, wanted in layers.items():
            notes += [
                f"statistic of layer {each}{' (attention)' * (projection == 'attn_out')}: "
                + whereabouts(context, each, hparams, projection)
                for each in wanted
            ]
    else:
        notes.append("statistic: not used (identity)")
    widths = [width_of(context.adapter, each, projection) for projection, wanted in layers.items() for each in wanted]
    statistics = sum(_STATISTIC * width**2 for width in widths) + _FACTORISING * max(widths) ** 2
    return {
        "memory_bytes": max(max(needed), min(sum(needed), context.memory_budget))
        + statistics * hparams.mom2_adjustment,
        "seconds": _seconds(context, rows, hparams, values),
        "notes": [*notes, "time: from a few steps of the value search on this machine, without collecting statistics"],
    }


def _seconds(
    context: EditContext,
    rows: Sequence[Rewrite],
    hparams: H,
    values: Callable[[EditContext, Sequence[Rewrite], H], Values],
) -> float:
    """Of the value search for all rows."""
    tried = list(rows[:_TRIED])
    passes = min(hparams.v_num_grad_steps, _PASSES)

    def timed(number: int) -> float:
        settings = evolve(hparams, v_num_grad_steps=number, early_stop_loss=0.0)
        started = time.perf_counter()
        values(context, tried, settings)
        return time.perf_counter() - started

    first = timed(1)  # also warms up
    first = min(first, timed(1))
    step = max(timed(passes) - first, 0.0) / max(passes - 1, 1)
    return (first + step * (hparams.v_num_grad_steps - 1)) * len(rows) / len(tried)
