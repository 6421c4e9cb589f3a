"""What should be said of an edit that was made, but is doubtful: each with its number and the remedy."""

from __future__ import annotations

from kedit_core.editing import EditContext
from kedit_core.requests import EditRequest
from kedit_methods_locate.hparams import RomeHyperParams
from kedit_methods_locate.keys import average
from kedit_methods_locate.stats import Statistic
from kedit_methods_locate.update import RankOne
from kedit_methods_locate.value import Values

_REACHED = 0.5  # probability of the target, per token
_ASYMMETRIC = 0.1  # of the averaged key's cosine
_LARGE = 1.0  # of the layer's own output


def target_reached(context: EditContext, request: EditRequest, hparams: RomeHyperParams, values: Values) -> None:
    """Warn ``target_not_reached`` when the value search ended with the target still unlikely."""
    probability = float(values.probability[0])
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


def reach(
    context: EditContext, request: EditRequest, values: Values, update: RankOne, statistic: Statistic | None
) -> None:
    """Warn ``large_update`` when ordinary text is moved by more than the layer's own output at the subject."""
    if statistic is None:
        return
    moved = update.norm * statistic.spread(update.right)
    relative = moved / float(values.clean.outputs[0].double().norm(dim=-1).mean())
    if relative > _LARGE:
        context.warn(
            "large_update",
            relative,
            "set or lower clamp_norm_factor, set mom2_ridge, or choose another layer",
            f"the update for {request.prompt!r} moves the layer's output on ordinary text by {relative:.2g} times its "
            "size at the subject",
        )
