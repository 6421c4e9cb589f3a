"""EMMET: MEMIT with an equality in place of the penalty, on one layer.

Gupta et al. 2024 (arXiv 2403.14236). With epsilon above 0, as published, it is MEMIT's update with lambda = alpha
epsilon; ``exact`` gives every fact exactly what it asks for. It keeps no keys: later edits do not know of earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from attrs import evolve

from kedit_core.editing import EditContext
from kedit_core.requests import EditRequest
from kedit_methods_locate.hparams import EmmetHyperParams
from kedit_methods_locate.hparams.spread import SpreadHyperParams
from kedit_methods_locate.solvers import EqualitySolver
from kedit_methods_locate.spread_method import Solver, SpreadMethod


class Emmet(SpreadMethod):
    """The method ``emmet``. Memory: see :class:`SpreadMethod`."""

    def solver(self, context: EditContext, requests: Sequence[EditRequest], hparams: SpreadHyperParams) -> Solver:
        """The equality-constrained update; a ``ridge`` given directly becomes its epsilon."""
        settings = cast(EmmetHyperParams, hparams)
        if settings.ridge is not None:
            settings = evolve(settings, ridge=None, emmet_lambda=settings.ridge / settings.mom2_update_weight)
        return EqualitySolver(context, requests, settings)
