"""PMET: targets for the MLP's and the attention's outputs are searched together, and the MLP is asked for its own only.

Li et al. 2024 (arXiv 2308.08742), section 3. The attention's vector helps the search and is then left out, unless
``projections`` names ``attn_out`` as well. The gap is spread by square roots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from kedit_core.editing import EditContext
from kedit_core.forward import Part
from kedit_methods_locate.descent import GreedySchedule
from kedit_methods_locate.hparams import PmetHyperParams
from kedit_methods_locate.hparams.spread import Projection, SpreadHyperParams
from kedit_methods_locate.memit import Memit
from kedit_methods_locate.rows import Rewrite
from kedit_methods_locate.value import Values, search

PARTS: tuple[Part, ...] = ("mlp_out", "attn_out")


class Pmet(Memit):
    """The method ``pmet``. Memory: see :class:`SpreadMethod`; its targets are twice MEMIT's."""

    targets = len(PARTS)

    def moved(self, hparams: SpreadHyperParams) -> Mapping[Projection, Part]:
        """Each edited projection moves its own output."""
        projections = cast(PmetHyperParams, hparams).projections
        return {each: each for each in projections}

    def values(self, context: EditContext, rows: Sequence[Rewrite], hparams: SpreadHyperParams) -> Values:
        """The joint search, with PMET's schedule of the likelihood's weight."""
        settings = cast(PmetHyperParams, hparams)
        return search(
            context.forward,
            rows,
            settings.layers[-1],
            settings,
            parts=PARTS,
            loss_layer=settings.v_loss_layer,
            schedule=GreedySchedule(settings.nll_loss_factor, settings.kl_stop),
            memory_budget=context.memory_budget,
            show=context.progress,
        )
