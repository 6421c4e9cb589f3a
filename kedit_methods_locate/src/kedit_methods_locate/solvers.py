"""The linear algebra of one batch edit: statistics looked up, earlier edits' keys counted in, each layer solved."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.errors import MethodError
from kedit_core.requests import EditRequest
from kedit_methods_locate import guards
from kedit_methods_locate.batch_state import past_keys
from kedit_methods_locate.equality import CollidingFactsError, equality_update
from kedit_methods_locate.factors import Solution
from kedit_methods_locate.hparams import EmmetHyperParams, MemitHyperParams
from kedit_methods_locate.hparams.spread import Projection, SpreadHyperParams
from kedit_methods_locate.ridge import Preserved, ridge_update
from kedit_methods_locate.rows import rewrite
from kedit_methods_locate.spread_method import Solver
from kedit_methods_locate.spreading import place_of
from kedit_methods_locate.stats import Identity, Statistic, statistics_for
from kedit_methods_locate.stats.definite import Definite
from kedit_methods_locate.stats.predecessors import other_statistic
from kedit_methods_locate.stats.source import width_of
from kedit_methods_locate.templates import BARE


class StatisticSolver(Solver):
    """A solver that stands on the statistics of the edited layers.

    Memory: 12 m^2 bytes for each edited layer of inner size m; factors are made once per model and kept.

    Attributes: factorises — whether statistics are solved with; without, 4 m^2 bytes for each layer.
    """

    factorises: bool = True

    def __init__(
        self, context: EditContext, hparams: SpreadHyperParams, projections: Sequence[Projection] = ("mlp_out",)
    ) -> None:
        self.context, self._hparams = context, hparams
        self._records: list[dict[str, Any]] = []
        self._statistics: dict[tuple[int, Projection], Statistic] = {}
        if hparams.mom2_adjustment:
            for projection in projections:
                found = statistics_for(context, hparams.layers, hparams, projection, factorise=self.factorises)
                self._statistics |= {(layer, projection): found[layer] for layer in hparams.layers}
        self._others = {
            place for place, statistic in self._statistics.items() if other_statistic(context, statistic, place[1])
        }

    @abstractmethod
    def solve(self, layer: int, projection: Projection, keys: Tensor) -> Solution:
        """The layer's right factor, with what is worth knowing of it."""

    def __call__(self, layer: int, projection: Projection, keys: Tensor) -> Tensor:
        solution = self.solve(layer, projection, keys)
        self.judge(layer, solution)
        statistic = self._statistics.get((layer, projection))
        record = {"layer": layer, "projection": projection, **self.solve_record(solution)}
        if statistic is not None:
            record["tokens"] = statistic.count
        self._records.append(record)
        return solution.right

    def record(self) -> dict[str, Any]:
        return {"solves": self._records}

    def judge(self, layer: int, solution: Solution) -> None:
        """Say it when a layer's equations are not solved well."""
        guards.solved(self.context, layer, solution)

    def solve_record(self, solution: Solution) -> Mapping[str, Any]:
        """What is told of one layer's solve."""
        return solution.record()

    # ---------------------------------------------------------------- for subclasses
    def statistic(self, layer: int, projection: Projection) -> Statistic | None:
        """A layer's statistic; None for the identity."""
        return self._statistics.get((layer, projection))

    def device(self, layer: int, projection: Projection) -> torch.device:
        """Where the edited weight is, and so where it is solved."""
        return self.context.stack.place(place_of(self.context.adapter, layer, projection)).device

    def factor(self, layer: int, projection: Projection, more: float = 0.0) -> Definite:
        """The statistic with its Cholesky factor (``more`` is added to the ridge), or the identity."""
        device = self.device(layer, projection)
        statistic = self.statistic(layer, projection)
        if statistic is None:
            return Identity(width_of(self.context.adapter, layer, projection), device)
        ridge = self._hparams.mom2_ridge + more
        return statistic.factorised(ridge, device=device, cache=self.context.cache)

    def with_past(
        self,
        layer: int,
        projection: Projection,
        start: Preserved,
        inside: Callable[[Tensor], Tensor] = lambda keys: keys,
    ) -> Preserved:
        """``start`` and the keys of this method's edits that are on the model, each added once.

        What was made for the edit before is kept for the Editor's life and grown, so a sequence never factorises again;
        when an edit was taken off, all is added anew.
        """
        past = past_keys(self.context, layer, projection)
        statistic = self.statistic(layer, projection)
        # a memo is for what follows from the base and its key alone, and this follows from the patches on the model
        # too: so their ids are kept with it, and what was made on others than are there now is never taken
        key: Hashable = (
            "kedit-methods-locate", "past", layer, projection, statistic and statistic.digest, str(self._hparams)
        )  # fmt: skip
        ids = tuple(name for name, _ in past)
        known: tuple[str, ...]
        preserved: Preserved
        known, preserved = self.context.memo.get(key, ((), start))
        if ids[: len(known)] != known:
            known, preserved = (), start
        for _, keys in past[len(known) :]:
            preserved = preserved.with_(inside(keys.T))
        self.context.memo[key] = (ids, preserved)
        return preserved


class RidgeSolver(StatisticSolver):
    """MEMIT's and PMET's: ``A = (lambda C + K_p K_p^T + K K^T)^-1 K``."""

    def __init__(self, context: EditContext, hparams: MemitHyperParams, projections: Sequence[Projection]) -> None:
        super().__init__(context, hparams, projections)
        self._weight, self._past = hparams.mom2_update_weight, hparams.protect_past

    def solve(self, layer: int, projection: Projection, keys: Tensor) -> Solution:
        """By the facts' own matrix, or the whole one when there are many facts."""
        preserved = Preserved.of(self.factor(layer, projection), self._weight)
        if self._past:
            preserved = self.with_past(layer, projection, preserved)
        solution = ridge_update(preserved, keys)
        guards.written_share(self.context, layer, solution, "lower mom2_update_weight")
        return solution


class EqualitySolver(StatisticSolver):
    """EMMET's: ``A = C_a^-1 K (K^T C_a^-1 K + epsilon)^-1``, ``C_a = alpha C + mu``."""

    def __init__(self, context: EditContext, requests: Sequence[EditRequest], hparams: EmmetHyperParams) -> None:
        self._requests, self._settings = requests, hparams
        lone = len(requests) == 1 and not hparams.ridge_for_one
        self._epsilon = 0.0 if hparams.exact or lone else hparams.emmet_lambda
        if not self._epsilon:
            self._refuse_equal_facts(context)
        super().__init__(context, hparams)

    def solve(self, layer: int, projection: Projection, keys: Tensor) -> Solution:
        """By the facts' matrix. Raises MethodError naming the facts whose keys are equal, where these cannot be."""
        settings, statistic = self._settings, self.statistic(layer, projection)
        alpha, mu = settings.mom2_update_weight, settings.update_norm_lambda
        if statistic is None:
            preserved = Preserved.of(self.factor(layer, projection), alpha + mu)
        else:
            preserved = Preserved.of(self.factor(layer, projection, statistic.share(mu / alpha)), alpha)
        try:
            solution = equality_update(
                preserved,
                keys,
                settings.emmet_lambda,
                ridge_for_one=settings.ridge_for_one,
                exact=settings.exact,
            )
        except CollidingFactsError as error:
            raise self._collision(error.groups, f"equal keys at layer {layer}") from error
        if not self._epsilon:
            return solution
        # against epsilon, as MEMIT's gain is against lambda = alpha epsilon
        solution = evolve(solution, gain=solution.gain / self._epsilon)
        guards.written_share(self.context, layer, solution, "lower emmet_lambda, or set exact")
        return solution

    def record(self) -> dict[str, Any]:
        return {**super().record(), "ridge": self._settings.mom2_update_weight * self._epsilon}

    def solve_record(self, solution: Solution) -> Mapping[str, Any]:
        """Without epsilon every fact gets all that it asks for."""
        return {**solution.record(), **({} if self._epsilon else {"smallest_share": 1.0})}

    def _refuse_equal_facts(self, context: EditContext) -> None:
        """MethodError for facts whose rows are one and the same: told before the values are searched."""
        whole = context.adapter.is_encoder_decoder
        alike: dict[tuple[int, ...], list[int]] = {}
        for number, request in enumerate(self._requests):
            row = rewrite(context.tokens, request, (BARE,), self._settings.fact_token).rows[0]
            alike.setdefault((row.index, *(row.ids if whole else row.cut().ids)), []).append(number)
        if groups := tuple(tuple(group) for group in alike.values() if len(group) > 1):
            raise self._collision(groups, "one and the same key")

    def _collision(self, groups: Sequence[Sequence[int]], what: str) -> MethodError:
        named = "; ".join(", ".join(repr(self._requests[i].prompt) for i in group) for group in groups)
        return MethodError(
            f"these facts have {what}, so no exact update exists: {named}; drop all but one of each, or set "
            "emmet_lambda above 0 without exact"
        )
