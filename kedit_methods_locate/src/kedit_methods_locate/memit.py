"""MEMIT: many facts at once, each with one target for the residual stream, spread over a few layers.

Meng et al. 2023 (arXiv 2210.07229), algorithm 1. In a sequence the keys of earlier edits join the statistic, as in the
sequential MEMIT of the AlphaEdit repository (``protect_past``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from kedit_core.editing import EditContext
from kedit_core.requests import EditRequest
from kedit_methods_locate.hparams import MemitHyperParams
from kedit_methods_locate.hparams.spread import SpreadHyperParams
from kedit_methods_locate.solvers import RidgeSolver
from kedit_methods_locate.spread_method import Solver, SpreadMethod


class Memit(SpreadMethod):
    """The method ``memit``. Memory: see :class:`SpreadMethod`."""

    def solver(self, context: EditContext, requests: Sequence[EditRequest], hparams: SpreadHyperParams) -> Solver:
        """The ridge update."""
        return RidgeSolver(context, cast(MemitHyperParams, hparams), tuple(self.moved(hparams)))

    def remembers(self, hparams: SpreadHyperParams) -> bool:
        """As ``protect_past`` says."""
        return cast(MemitHyperParams, hparams).protect_past
