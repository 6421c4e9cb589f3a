"""What MEMIT, EMMET, PMET and AlphaEdit are as methods: search targets, spread the gaps, keep what is needed later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.forward import Part, Site
from kedit_core.patches import EditPatch
from kedit_core.requests import EditRequest
from kedit_methods_locate import guards, planning
from kedit_methods_locate.batch_state import Stored, stored, target_tensors
from kedit_methods_locate.hparams.spread import Projection, SpreadHyperParams
from kedit_methods_locate.lengths import check_contexts
from kedit_methods_locate.locate_method import LocateMethod, check_layers
from kedit_methods_locate.records import fact_record
from kedit_methods_locate.rows import Rewrite, rewrite
from kedit_methods_locate.same_ground import DTYPE, check_same_ground, dtype_here
from kedit_methods_locate.spreading import Goal, Written, course, place_of, spread
from kedit_methods_locate.stats.source import width_of
from kedit_methods_locate.templates import context_templates
from kedit_methods_locate.value import Values, search


class Solver(ABC):
    """One edit's linear algebra: what turns a layer's keys into the right factor of its update."""

    @abstractmethod
    def __call__(self, layer: int, projection: Projection, keys: Tensor) -> Tensor:
        """Keys ``[in, n]`` float64 -> ``[in, n]`` float64; the update is the gap ``[out, n]`` times its transpose."""

    def record(self) -> dict[str, Any]:
        """What a reader of the patch may want to know; JSON-able."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Tensors for the patch's state."""
        return {}


class SpreadMethod(LocateMethod, ABC):
    """The hooks of a method that spreads; a subclass says what is moved, how it is searched and how it is solved.

    Memory beside the model: the statistics (12 m^2 bytes for each edited layer of inner size m, and 8 m^2 while one is
    factorised), the activations behind the last edited layer for one group of the value search (``memory_budget``),
    the residual stream of all rows up to their subject, and 8 n (m + d) bytes of factors for n facts.

    Attributes: targets — how many vectors are searched, and kept in the patch, for each fact.
    """

    targets: ClassVar[int] = 1

    # ---------------------------------------------------------------- what a method says
    def moved(self, hparams: SpreadHyperParams) -> Mapping[Projection, Part]:
        """Which projections are edited, and whose output each is to move: by default the MLP moves the block's."""
        return {"mlp_out": "block"}

    def values(self, context: EditContext, rows: Sequence[Rewrite], hparams: SpreadHyperParams) -> Values:
        """The targets' search; MEMIT's by default."""
        return search(
            context.forward,
            rows,
            hparams.layers[-1],
            hparams,
            parts=("block",),
            loss_layer=hparams.v_loss_layer,
            memory_budget=context.memory_budget,
            show=context.progress,
        )

    def remembers(self, hparams: SpreadHyperParams) -> bool:
        """Whether the patch keeps the keys of its facts for later edits."""
        return False

    def record(self, solver: Solver, written: Written) -> Mapping[str, Any]:
        """What the patch's state says of the update as a whole, beside the loop's course and the solves; JSON-able."""
        return {}

    @abstractmethod
    def solver(self, context: EditContext, requests: Sequence[EditRequest], hparams: SpreadHyperParams) -> Solver:
        """The linear algebra of this edit; statistics are looked up here."""

    # ---------------------------------------------------------------- hooks
    @hookimpl
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: SpreadHyperParams
    ) -> EditPatch:
        """One low-rank delta for each edited weight, of rank at most the number of facts."""
        check_layers(context, hparams)
        templates = context_templates(context, hparams)
        check_contexts(context, requests, templates)
        rows = [rewrite(context.tokens, request, templates, hparams.fact_token) for request in requests]
        solver = self.solver(context, requests, hparams)
        found = self.values(context, rows, hparams)
        for number, request in enumerate(requests):
            guards.target_reached(context, request, hparams, found, number)
        edits = tuple(fact_record(rows[i], found, i) for i in range(len(requests)))
        targets = {str(part): target for part, target in found.targets.items()}
        return self._write(context, Stored(tuple(requests), templates, targets, edits), rows, hparams, solver)

    @hookimpl
    def drop_request(self, context: EditContext, patch: EditPatch, request_id: str) -> EditPatch:
        """The patch of the other facts, from their stored targets; keys and states are read anew.

        What is on the model must be what the patch was computed on; statistics and the model's dtype are compared, the
        way in which the patches beneath were put on is not known. Raises InputError when one of these is another, the
        patch does not hold what is needed, or no fact is left.
        """
        hparams = cast(SpreadHyperParams, context.hparams)
        check_layers(context, hparams)
        rest = stored(patch).without(request_id)
        check_same_ground(context, patch, self.moved(hparams), hparams)
        rows = [rewrite(context.tokens, each, rest.templates, hparams.fact_token) for each in rest.requests]
        solver = self.solver(context, rest.requests, hparams)
        return self._write(context, rest, rows, hparams, solver)

    @hookimpl
    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: SpreadHyperParams
    ) -> Mapping[str, Any]:
        """The weights that will change, time and memory, and where the statistics will come from."""
        check_layers(context, hparams)
        moved, view = self.moved(hparams), context.adapter
        needed = planning.search_plan(
            context, requests, hparams, hparams.layers[-1], dict.fromkeys(moved, hparams.layers), self.values
        )
        edited = [(layer, each) for layer in hparams.layers for each in moved]
        # both factors of each update, the keys if they are kept, and the targets
        widths = sum(width_of(view, layer, each) for layer, each in edited)
        wide = widths * (1 + self.remembers(hparams)) + view.hidden_size * (len(edited) + self.targets)
        size = 4 * len(requests) * wide
        return {"places": [place_of(view, layer, each) for layer, each in edited], "patch_bytes": size, **needed}

    # ---------------------------------------------------------------- inside
    def _write(
        self,
        context: EditContext,
        facts: Stored,
        rows: Sequence[Rewrite],
        hparams: SpreadHyperParams,
        solver: Solver,
    ) -> EditPatch:
        moved = self.moved(hparams)
        device = context.forward.device
        goals = {
            projection: Goal(Site(hparams.layers[-1], part, "output"), facts.targets[part].to(device))
            for projection, part in moved.items()
        }
        written = spread(context, rows, hparams, goals, solver, keep_keys=self.remembers(hparams))
        guards.update_sizes(context, written.turns)
        config = {
            "context_templates": list(facts.templates),
            DTYPE: dtype_here(context),
            "edits": [dict(edit) for edit in facts.edits],
            **course(written),
            **solver.record(),
            **self.record(solver, written),
        }
        tensors = {**target_tensors(facts.targets), **written.keys, **solver.state()}
        return context.new_patch(written.deltas, facts.requests, state_config=config, state_tensors=tensors)
