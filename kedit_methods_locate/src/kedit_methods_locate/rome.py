"""ROME and R-ROME: one fact into one MLP down-projection, by a rank-one update.

Meng et al. 2022 (arXiv 2202.05262), equation 2; Gupta et al. 2024 (arXiv 2403.07175). Several requests are written one
after another, each on the weights that the ones before have left. The statistic is always that of the unedited model.

Memory beside the model: the activations behind the edited layer of one request's rows, and 24 m^2 bytes for the
statistic of an MLP of inner size m.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.patches import EditPatch, LowRankDelta
from kedit_core.requests import EditRequest
from kedit_methods_locate import guards, planning
from kedit_methods_locate.hparams import RomeHyperParams, RRomeHyperParams
from kedit_methods_locate.keys import average
from kedit_methods_locate.lengths import check_contexts
from kedit_methods_locate.locate_method import LocateMethod, check_layers
from kedit_methods_locate.records import fact_record
from kedit_methods_locate.rows import Rewrite, rewrite
from kedit_methods_locate.sizes import relative_weight_norm
from kedit_methods_locate.stats import statistics_for
from kedit_methods_locate.templates import context_templates
from kedit_methods_locate.update import RankOne, direction, rank_one
from kedit_methods_locate.value import Values, search


@frozen(eq=False)
class Pieces:
    """What an update is made from: ``C^-1 towards`` gives the direction, ``key`` the divisor, and ``residual`` is what
    the layer's output for ``key`` must move by."""

    towards: Tensor
    key: Tensor
    residual: Tensor


def original_pieces(values: Values) -> Pieces:
    """ROME: the averaged key gives the direction, the bare prompt's key the divisor. All ``[width]``, first request."""
    return Pieces(average(values.clean.keys)[0], values.clean.keys[0, 0], values.delta[0])


def averaged_pieces(values: Values) -> Pieces:
    """R-ROME: the averaged key in both places, and the residual from the averaged output."""
    key = average(values.clean.keys)[0]
    wanted = values.clean.value[0].to(values.delta) + values.delta[0]
    return Pieces(key, key, wanted - average(values.clean.output)[0].to(values.delta))


def prompt_pieces(values: Values) -> Pieces:
    """p-ROME: the bare prompt's key in both places."""
    key = values.clean.keys[0, 0]
    return Pieces(key, key, values.delta[0])


class Rome(LocateMethod):
    """The method ``rome``: the original, asymmetric update.

    Memory beside the model: the activations behind the edited layer of one request's rows (``memory_budget``), 24 m^2
    bytes for the statistic of an MLP of inner size m while it is factorised and 12 m^2 from then on, and 4 (m + d)
    bytes for each fact of width d.
    """

    @hookimpl
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: RomeHyperParams
    ) -> EditPatch:
        """One rank-one delta for each request, in order."""
        check_layers(context, hparams)
        layer = hparams.layer
        place = context.adapter.mlp_out_weight(layer)
        templates = context_templates(context, hparams)
        check_contexts(context, requests, templates)
        statistic = statistics_for(context, [layer], hparams)[layer] if hparams.mom2_adjustment else None
        device = context.stack.place(place).device
        factor = statistic.factorised(hparams.mom2_ridge, device=device, cache=context.cache) if statistic else None
        deltas: list[LowRankDelta] = []
        records: list[dict[str, Any]] = []
        with context.provisional() as writer:
            for number, request in enumerate(requests):
                rows = rewrite(context.tokens, request, templates, hparams.fact_token)
                values = _values(context, [rows], hparams)
                pieces = self.pieces(values, hparams)
                towards = direction(pieces.towards, factor.solve if factor else None)
                update = rank_one(pieces.residual, pieces.key, towards)
                guards.target_reached(context, request, hparams, values)
                if pieces.key is not pieces.towards:
                    guards.denominator(context, request, values, update)
                relative = relative_weight_norm(context, place, update.norm)
                guards.reach(context, request, values, update, statistic, relative)
                delta = _delta(context, place, update)
                deltas.append(delta)
                records.append(
                    fact_record(rows, values, gain=update.gain, cosine=update.cosine, relative_weight_norm=relative)
                )
                if number < len(requests) - 1:
                    writer.add([delta])
        state: dict[str, Any] = {"context_templates": list(templates), "edits": records}
        if statistic and factor:
            state["statistic"] = {"layer": layer, "tokens": statistic.count, "ridge": factor.ridge}
        return context.new_patch(deltas, requests, state_config=state)

    @hookimpl
    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: RomeHyperParams
    ) -> Mapping[str, Any]:
        """The weight that will change, the memory beside the model, and where the statistic will come from."""
        check_layers(context, hparams)
        layer = hparams.layer
        needed = planning.search_plan(context, requests, hparams, layer, {"mlp_out": (layer,)}, _values)
        size = 4 * len(requests) * (context.adapter.mlp_size(layer) + context.adapter.hidden_size)
        return {"places": [context.adapter.mlp_out_weight(layer)], "patch_bytes": size, **needed}

    def pieces(self, values: Values, hparams: RomeHyperParams) -> Pieces:
        """What this variant makes its update from."""
        return original_pieces(values)


class RRome(Rome):
    """The method ``r_rome``: averaged keys throughout (or the bare key throughout, ``variant: p_rome``).

    Memory: that of :class:`Rome`.
    """

    def pieces(self, values: Values, hparams: RomeHyperParams) -> Pieces:
        """Averaged keys, or bare ones when the settings say so."""
        bare = isinstance(hparams, RRomeHyperParams) and hparams.variant == "p_rome"
        return prompt_pieces(values) if bare else averaged_pieces(values)


def _values(context: EditContext, rows: Sequence[Rewrite], hparams: RomeHyperParams) -> Values:
    return search(context.forward, rows, hparams.layer, hparams, memory_budget=context.memory_budget)


def _delta(context: EditContext, place: str, update: RankOne) -> LowRankDelta:
    dtype = torch.promote_types(context.stack.place(place).dtype, torch.float32)
    return LowRankDelta(place, update.left[:, None].to(dtype), update.right[None, :].to(dtype))
