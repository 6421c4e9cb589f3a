"""Moving the states of many facts to their targets, layer after layer: what MEMIT, EMMET, PMET and AlphaEdit share.

Meng et al. 2023, section 4.3 and algorithm 1 (specification: MEMIT, section 3). A layer takes its share of the gap that
is left and is written before the next is read, so that later keys and states are those of the weights they will meet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.forward import Site
from kedit_core.models import ModelView
from kedit_core.patches import LowRankDelta
from kedit_methods_locate.factors import Factors
from kedit_methods_locate.hparams.spread import Projection, Spread, SpreadHyperParams
from kedit_methods_locate.reading import Reader, key_weights
from kedit_methods_locate.rows import Rewrite
from kedit_methods_locate.sizes import relative_weight_norm

Solve: TypeAlias = Callable[[int, Projection, Tensor], Tensor]
"""(layer, projection, keys ``[in, n]`` float64) -> right factor ``[in, n]`` float64: the update is gap times its
transpose."""


@frozen(eq=False)
class Goal:
    """Where states must go.

    Attributes:
        site: whose output is moved: the last edited layer's block (MEMIT) or projection (PMET).
        targets: ``[n, hidden]`` what it should be at each fact's token, in the bare prompt.
    """

    site: Site
    targets: Tensor


@frozen(kw_only=True, eq=False)
class Turn:
    """One layer's part: mean norms over the facts, and the update with its size against the weight (None: packed)."""

    layer: int
    projection: Projection
    gap: float
    share: float
    update: Factors
    relative_norm: float | None


@frozen(eq=False)
class Written:
    """What a spreading loop made.

    Attributes:
        deltas: one for each layer and projection, in the order in which they were written.
        keys: ``keys.{layer}.{projection}`` -> ``[n, in]`` keys as they are after all was written, if asked for.
        turns: the loop's course.
        left: mean norm of the gap that is left in the end.
    """

    deltas: tuple[LowRankDelta, ...]
    keys: Mapping[str, Tensor]
    turns: tuple[Turn, ...]
    left: float


def share_of(turn: int, turns: int, kind: Spread) -> float:
    """What part of the gap layer number ``turn`` of ``turns`` takes: 1/(layers left), or one over its square root."""
    left = turns - turn
    return 1 / left if kind == "linear" else left**-0.5


def place_of(view: ModelView, layer: int, projection: Projection) -> str:
    """Name of a projection's weight."""
    return view.mlp_out_weight(layer) if projection == "mlp_out" else view.attn_out_weight(layer)


def key_name(layer: int, projection: Projection) -> str:
    """Under which a layer's keys stand in a patch's state."""
    return f"keys.{layer}.{projection}"


def spread(
    context: EditContext,
    rewrites: Sequence[Rewrite],
    hparams: SpreadHyperParams,
    goals: Mapping[Projection, Goal],
    solve: Solve,
    *,
    keep_keys: bool,
) -> Written:
    """Write the facts into ``hparams.layers``, one layer at a time, and take everything off again.

    Args:
        goals: for each edited projection what is to be moved; all goals of a projection are at the last layer.
        solve: turns keys into the right factor of a layer's update.
        keep_keys: read the keys once more when all is written.

    Memory: the residual stream of all rows up to the subject, one layer's keys in float64, the factors.

    Raises MethodError when an update is not finite; the model is as found whatever happens.
    """
    view, layers = context.adapter, hparams.layers
    weights = key_weights(len(rewrites[0].rows), hparams.key_weights)
    reader = Reader(context.forward, rewrites, layers[0], layers[-1], weights)
    deltas: list[LowRankDelta] = []
    turns: list[Turn] = []
    with context.provisional() as writer:
        for turn, layer in enumerate(layers):
            share = share_of(turn, len(layers), hparams.spread)
            for projections in _together(view, tuple(goals)):
                sites = {each: Site(layer, each, "input") for each in projections}
                read = reader.read(list(sites.values()), [goals[each].site for each in projections])
                made = []
                for projection, site in sites.items():
                    gap, place = _gap(goals[projection], read), place_of(view, layer, projection)
                    right = solve(layer, projection, read[site].double().T)
                    update = Factors.of((gap * share).T, right, f"the update of {place}")
                    made.append(_delta(context, place, update))
                    turns.append(
                        Turn(
                            layer=layer,
                            projection=projection,
                            gap=_mean_norm(gap),
                            share=share,
                            update=update,
                            relative_norm=relative_weight_norm(context, place, update.norm),
                        )
                    )
                writer.add(made)
                deltas += made
            if layer != layers[-1]:
                for _ in range(layers[turn + 1] - layer):
                    reader.advance()
        reached = reader.read([], [goal.site for goal in goals.values()])
        left = max(_mean_norm(_gap(goal, reached)) for goal in goals.values())
        kept = _final_keys(reader, layers, tuple(goals)) if keep_keys else {}
    return Written(tuple(deltas), kept, tuple(turns), left)


def _gap(goal: Goal, read: Mapping[Site, Tensor]) -> Tensor:
    state = read[goal.site]
    return goal.targets.to(state.device) - state


def _final_keys(reader: Reader, layers: Sequence[int], projections: Sequence[Projection]) -> dict[str, Tensor]:
    """Keys as they are with all that was written: what later edits must leave in place."""
    sites = {key_name(layer, each): Site(layer, each, "input") for layer in layers for each in projections}
    read = reader.keys_now(tuple(sites.values()))
    return {name: read[site] for name, site in sites.items()}


def _together(view: ModelView, projections: tuple[Projection, ...]) -> list[tuple[Projection, ...]]:
    """Projections whose keys are read before either is written: all where MLP and attention see the same input."""
    return [projections] if view.parallel else [(each,) for each in projections]


def _delta(context: EditContext, place: str, update: Factors) -> LowRankDelta:
    """The update as a patch holds it: in float32, or the weight's dtype when that is wider."""
    dtype = torch.promote_types(context.stack.place(place).dtype, torch.float32)
    return LowRankDelta(place, update.left.to("cpu", dtype), update.right.T.to("cpu", dtype))


def _mean_norm(rows: Tensor) -> float:
    return float(torch.linalg.vector_norm(rows.double(), dim=-1).mean())


def course(written: Written) -> dict[str, Any]:
    """The loop as JSON, for a patch's state."""
    turns = [
        {
            "layer": turn.layer,
            "projection": turn.projection,
            "gap": turn.gap,
            "share": turn.share,
            "relative_norm": turn.relative_norm,
        }
        for turn in written.turns
    ]
    return {"turns": turns, "gap_left": written.left}
