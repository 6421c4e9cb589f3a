"""AlphaEdit's linear algebra for one edit: null spaces looked up and judged, each layer solved inside its own."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.errors import MethodError
from kedit_methods_locate import guards
from kedit_methods_locate.factors import Solution, checked_keys
from kedit_methods_locate.hparams import AlphaEditHyperParams
from kedit_methods_locate.hparams.spread import Projection
from kedit_methods_locate.nullspace import NullSpace, nullspace_update
from kedit_methods_locate.ridge import Preserved, ridge_update
from kedit_methods_locate.solvers import StatisticSolver
from kedit_methods_locate.stats.predecessors import other_null_space


class NullSpaceSolver(StatisticSolver):
    """AlphaEdit's: ``A = P (lambda C + K' K'^T + S' + L2)^-1 K'`` with ``K' = P K``, S' the earlier edits' keys.

    With lambda 0, as published, all is solved in the null space's own coordinates, and no statistic is factorised.
    """

    def __init__(self, context: EditContext, hparams: AlphaEditHyperParams) -> None:
        if not hparams.mom2_adjustment:
            raise MethodError(
                "AlphaEdit's null space is the statistic's, so mom2_adjustment=false leaves nothing of it; leave that "
                "setting out, or use memit"
            )
        self.factorises = hparams.mom2_update_weight > 0
        if hparams.mom2_ridge and not self.factorises:
            context.warn(
                "mom2_ridge_unused",
                hparams.mom2_ridge,
                "leave it out; l2 and nullspace_* say what AlphaEdit holds back",
                "mom2_ridge has no effect on AlphaEdit, which takes the statistic's eigenvectors and solves without it",
            )
        super().__init__(context, hparams)
        self._settings = hparams
        self._spaces: list[dict[str, Any]] = []
        for layer in hparams.layers:  # what cannot be written in is refused now, before the values are searched
            space = self.space(layer, "mlp_out")
            self.l2(space)
            guards.null_space(context, layer, space)
            if (layer, "mlp_out") not in self._others:
                other_null_space(context, layer, space.rank, space.digest)

    def space(self, layer: int, projection: Projection) -> NullSpace:
        """The directions that may be written in."""
        settings, statistic = self._settings, self.statistic(layer, projection)
        if statistic is None:
            raise MethodError(f"there is no statistic of layer {layer}; collect it with 'kedit stats'")
        value = {
            "absolute": settings.nullspace_threshold,
            "energy": settings.nullspace_energy,
            "rank": float(settings.nullspace_rank or 0),
        }[settings.nullspace_rule]
        device = self.device(layer, projection)
        return NullSpace.of(statistic, settings.nullspace_rule, value, device=device, cache=self.context.cache)

    def l2(self, space: NullSpace) -> float:
        """The ridge in absolute terms. Raises MethodError when ordinary keys have no length inside the null space."""
        if self._settings.l2_unit == "absolute":
            return self._settings.l2
        if not space.energy > 0:
            raise MethodError(
                "ordinary keys have no length inside the null space, so l2 in their units is zero; set l2_unit=absolute"
            )
        return self._settings.l2 * space.energy

    def solve(self, layer: int, projection: Projection, keys: Tensor) -> Solution:
        """In the null space, by the facts' matrix or the whole one."""
        space, statistic = self.space(layer, projection), self.statistic(layer, projection)
        l2, weight = self.l2(space), self._settings.mom2_update_weight
        inside = space.project if weight else space.inside
        if weight and statistic is not None:
            preserved = Preserved.of(self.factor(layer, projection, statistic.share(l2 / weight)), weight)
        else:
            preserved = space.preserved(l2)
        if self._settings.protect_past:
            preserved = self.with_past(layer, projection, preserved, inside)
        if weight:
            found = ridge_update(preserved, space.project(checked_keys(keys, preserved)))
            solution = evolve(found, right=space.project(found.right))
        else:
            solution = nullspace_update(space, preserved, keys)
        self._spaces.append({"layer": layer, "l2": l2, **space.record()})
        remedy = "lower l2 or mom2_update_weight" if weight else "lower l2"
        guards.written_share(self.context, layer, solution, remedy, least=0.3)
        return solution

    def judge(self, layer: int, solution: Solution) -> None:
        """As for the others; what helps is this method's own ridge and null space."""
        remedy = "raise l2, or lower nullspace_energy (or nullspace_threshold, nullspace_rank)"
        guards.solved(self.context, layer, solution, remedy)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "null_spaces": self._spaces}
