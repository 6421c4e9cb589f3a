"""Layers for a model without a preset: where causal tracing of the user's own facts finds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kedit_core.contract import Choice
from kedit_core.editing import EditContext
from kedit_core.errors import InputError, MethodError
from kedit_core.hparams import HyperParams
from kedit_core.requests import EditRequest
from kedit_methods_locate.tracing import Fact, TraceSettings, average, suggest_layers, trace_all

SOURCE = "causal tracing"

_LEAST = 4  # facts; fewer say little about a model
_MOST = 12  # facts that are traced
_CLEAR = 0.1  # of the total effect
_CHEAP = 1_000_000_000  # parameters; a larger model on a CPU would be traced for minutes


def choose_layers(
    context: EditContext, requests: Sequence[EditRequest], hparams: HyperParams, undecided: Sequence[str]
) -> Choice | None:
    """Where MLPs at the subject's last token give most of the answer back, over a few of the facts.

    One layer for a method that edits one, else as many as the depth suggests, ending there. None when layers were
    decided, for few facts, for an encoder-decoder, and where tracing would take minutes.
    """
    name = next((each for each in ("layer", "layers") if each in undecided), None)
    if name is None or len(requests) < _LEAST or context.adapter.is_encoder_decoder or not _cheap(context):
        return None
    facts = [Fact.from_request(request) for request in requests[:_MOST]]
    try:
        traces = trace_all(context, facts, TraceSettings(kinds=("mlp",))).traces
    except (InputError, MethodError) as error:
        return Choice(source=SOURCE, reason=f"nothing was traced ({error}), so the depth's guess stays")
    if len(traces) < _LEAST:
        return Choice(
            source=SOURCE, reason=f"the model knows {len(traces)} of {len(facts)} facts, so the depth's guess stays"
        )
    effects = average(traces)
    span = len(getattr(hparams, "layers", (0,)))
    found = suggest_layers(effects, context.adapter.num_layers, min(span, context.adapter.num_layers))
    share = found.effect / effects.total_effect if effects.total_effect > 0 else 0.0
    told = (
        f"MLPs around layer {found.layer} give back {share:.0%} of the answer at the subject, over {len(traces)} facts"
    )
    if share < _CLEAR:
        return Choice(source=SOURCE, reason=f"{told}, which is little, so the depth's guess stays")
    values: dict[str, Any] = {name: found.layer if name == "layer" else list(found.layers)}
    return Choice(values=values, source=SOURCE, reason=told)


def _cheap(context: EditContext) -> bool:
    parameters = list(context.model.parameters())
    return parameters[0].device.type != "cpu" or sum(each.numel() for each in parameters) < _CHEAP
