"""What should be said of an edit that was made, but is doubtful: each with its number and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

from kedit_core.editing import EditContext
from kedit_core.requests import EditRequest
from kedit_methods_locate.factors import Solution
from kedit_methods_locate.hparams import LocateHyperParams
from kedit_methods_locate.keys import average
from kedit_methods_locate.nullspace import NullSpace
from kedit_methods_locate.spreading import Turn
from kedit_methods_locate.stats import Statistic
from kedit_methods_locate.update import RankOne
from kedit_methods_locate.value import Values

_REACHED = 0.5  # probability of the target, per token
_ASYMMETRIC = 0.1  # of the averaged key's cosine
_SHARE = 0.1  # of what a fact asks of a layer
_LARGE = 1.0  # of the layer's own output


def target_reached(
    context: EditContext, request: EditRequest, hparams: LocateHyperParams, values: Values, number: int = 0
) -> None:
    """Warn ``target_not_reached`` when the value search of request ``number`` ended with the target still unlikely."""
    probability = float(values.probability[number])
    if probability < _REACHED:
        knob = "v_lr" if hparams.clamp_norm_factor is None else "clamp_norm_factor"
        context.warn(
            "target_not_reached",
            probability,
            f"raise v_num_grad_steps or {knob}, or choose another layer",
            f"the value search for {request.prompt!r} left the target at probability {probability:.2g} a token",
        )


def denominator(context: EditContext, request: EditRequest, values: Values, update: RankOne) -> None:
    """Warn ``small_denominator`` when ROME's divisor, the bare key's, is far below the averaged key's.

    The update is then made for the bare key alone, and far too large for every other (Gupta et al. 2024, section 3).
    """
    averaged = average(values.clean.keys)[0].double()
    usual = float(averaged @ update.right / averaged.norm())
    if update.cosine < _ASYMMETRIC * usual:
        context.warn(
            "small_denominator",
            update.cosine / usual,
            "use method r_rome, whose divisor is the averaged key's",
            f"ROME's divisor for {request.prompt!r} is far below the averaged key's, so other keys are moved too far",
        )


def large_update(context: EditContext, relative: float | None, what: str, remedy: str) -> bool:
    """Warn ``large_update`` when what is added to a weight is larger than the weight; whether it was.

    Args:
        relative: of :func:`~kedit_methods_locate.sizes.relative_weight_norm`.
        what: the update, for the message.
    """
    large = relative is not None and relative > _LARGE
    if large:
        message = f"the update {what} is {relative:.2g} times the size of its weight"
        context.warn("large_update", relative, remedy, message)
    return large


def reach(
    context: EditContext,
    request: EditRequest,
    values: Values,
    update: RankOne,
    statistic: Statistic | None,
    relative: float | None,
) -> None:
    """Warn ``large_update`` when ROME's update is larger than the weight (``relative`` to it), or moves ordinary text
    by more than the layer's own output at the subject.

    Units that text hardly uses make the first without the second: the statistic sees nothing of them.
    """
    if statistic is None:
        remedy = "lower clamp_norm_factor, leave mom2_adjustment on, or choose another layer"
    else:
        remedy = "set mom2_ridge (1e-4, say), set or lower clamp_norm_factor, or choose another layer"
    if large_update(context, relative, f"for {request.prompt!r}", remedy) or statistic is None:
        return
    moved = update.norm * statistic.spread(update.right)
    relative = moved / float(values.clean.output[0].double().norm(dim=-1).mean())
    if relative > _LARGE:
        context.warn(
            "large_update",
            relative,
            remedy,
            f"the update for {request.prompt!r} moves the layer's output on ordinary text by {relative:.2g} times its "
            "size at the subject",
        )


def solved(
    context: EditContext,
    layer: int,
    solution: Solution,
    remedy: str = "set mom2_ridge (1e-4, say), or give a larger corpus (--corpus)",
) -> None:
    """Warn ``inaccurate_solve`` when no way of solving a layer's equations came within the tolerance."""
    if not solution.accurate:
        context.warn(
            "inaccurate_solve",
            solution.residual,
            remedy,
            f"the update of layer {layer} solves its equations only to {solution.residual:.1e}",
        )


def written_share(context: EditContext, layer: int, solution: Solution, remedy: str, *, least: float = _SHARE) -> None:
    """Warn ``little_is_written`` when a lone fact would get less than ``least`` of what it asks of a layer."""
    share = float(solution.share.median())
    if share < least:
        context.warn(
            "little_is_written",
            share,
            remedy,
            f"at layer {layer} a fact gets {share:.2g} of what it asks for (median); the rest is held by what must "
            "be left alone",
        )


def null_space(context: EditContext, layer: int, space: NullSpace) -> None:
    """Warn ``unusual_null_space`` when too few directions are left to write in, or too few are protected."""
    if space.unusual:
        many = space.share > 0.5
        context.warn(
            "unusual_null_space",
            space.share,
            "lower nullspace_energy (or nullspace_threshold)" if many else "raise nullspace_energy (or the threshold)",
            f"{space.rank} of {space.width} directions of layer {layer} may be written in, so "
            + ("hardly any is protected" if many else "edits have little room"),
        )


def update_sizes(context: EditContext, turns: Sequence[Turn]) -> None:
    """Warn ``large_update`` for each layer's update that is larger than its weight."""
    remedy = "raise mom2_update_weight or l2, set mom2_ridge, lower clamp_norm_factor, or choose other layers"
    for turn in turns:
        large_update(context, turn.relative_norm, f"of layer {turn.layer}", remedy)
