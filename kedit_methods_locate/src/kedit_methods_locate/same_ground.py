"""Whether a fact can be taken out of a patch here: what it stands on must be what is at hand."""

from __future__ import annotations

from collections.abc import Iterable

from kedit_core.editing import EditContext
from kedit_core.errors import InputError
from kedit_core.patches import EditPatch
from kedit_methods_locate.hparams.spread import Projection, SpreadHyperParams
from kedit_methods_locate.stats import statistics_for
from kedit_methods_locate.stats.checks import model_dtype
from kedit_methods_locate.stats.predecessors import resource_name

DTYPE = "model_dtype"
"""Under which name a patch's state has the dtype of the model that it was made on."""


def dtype_here(context: EditContext) -> str:
    """The model's dtype, as a patch records it."""
    return str(model_dtype(context)).removeprefix("torch.")


def check_same_ground(
    context: EditContext, patch: EditPatch, projections: Iterable[Projection], hparams: SpreadHyperParams
) -> None:
    """Refuse to write a patch's facts anew on another dtype or other statistics than it was made with.

    The statistics are looked up (and collected, if need be) as for an edit. Whether the patches beneath were merged or
    attached is not recorded, and not compared.

    Raises InputError naming the dtype, or the layer, and the remedy.
    """
    what = f"the patch {patch.id[:12]}"
    made, here = patch.state.config.get(DTYPE), dtype_here(context)
    if made is not None and made != here:
        raise InputError(
            f"{what} was made on a model in {made} and this one is in {here}, where keys and states are others; load "
            f"it with --dtype {made}"
        )
    if not hparams.mom2_adjustment:
        return
    recorded = dict(patch.state.config.get("resources") or {})
    for projection in projections:
        for layer, statistic in statistics_for(context, hparams.layers, hparams, projection, factorise=False).items():
            digest = recorded.get(resource_name(layer, projection))
            if digest != statistic.digest:
                stands = f"stands on the statistic {digest[:12]}" if digest else "does not say on which statistic"
                raise InputError(
                    f"at layer {layer} ({projection}) {what} {stands}, and the one at hand is {statistic.digest[:12]}; "
                    "give the one that it was made with (--stats FILE, or the same --corpus)"
                )
