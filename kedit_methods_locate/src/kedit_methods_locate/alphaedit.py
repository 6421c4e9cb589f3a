"""AlphaEdit: MEMIT whose updates stay in the null space of ordinary keys, and which leaves earlier edits' keys alone.

Fang et al. 2025 (arXiv 2410.02355), section 3. Earlier edits are those on the model: each patch keeps its own keys, as
they were once all was written, so taking a patch off takes its keys from what the next edit sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from kedit_core.editing import EditContext
from kedit_core.requests import EditRequest
from kedit_methods_locate.hparams import AlphaEditHyperParams
from kedit_methods_locate.hparams.spread import SpreadHyperParams
from kedit_methods_locate.nullspace import protection
from kedit_methods_locate.nullspace_solver import NullSpaceSolver
from kedit_methods_locate.spread_method import Solver, SpreadMethod
from kedit_methods_locate.spreading import Written


class AlphaEdit(SpreadMethod):
    """The method ``alphaedit``. Memory: see :class:`SpreadMethod`; and 8 m min(r, m - r) bytes a layer for the basis of
    its null space of r directions, 24 m^2 while that is made."""

    def solver(self, context: EditContext, requests: Sequence[EditRequest], hparams: SpreadHyperParams) -> Solver:
        """The update inside the null space."""
        return NullSpaceSolver(context, cast(AlphaEditHyperParams, hparams))

    def remembers(self, hparams: SpreadHyperParams) -> bool:
        """As ``protect_past`` says."""
        return cast(AlphaEditHyperParams, hparams).protect_past

    def record(self, solver: Solver, written: Written) -> Mapping[str, Any]:
        """For each layer how far ordinary text's outputs move (mean square), and the bound that the null space sets."""
        mine, told = cast(NullSpaceSolver, solver), []
        for turn in written.turns:
            statistic = mine.statistic(turn.layer, turn.projection)
            if statistic is not None:
                moved, bound = protection(mine.space(turn.layer, turn.projection), turn.update, statistic)
                told.append({"layer": turn.layer, "moved": moved, "bound": bound})
        return {"protection": told}
