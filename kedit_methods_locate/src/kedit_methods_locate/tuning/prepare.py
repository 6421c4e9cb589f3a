"""What is done once before the trials: tracing for layers to try, and the statistics of all layers in one pass."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from kedit_core.editing import Editor, EditWarning
from kedit_core.errors import InputError, KeditError
from kedit_core.hparams import HyperParams
from kedit_core.requests import EditRequest
from kedit_methods_locate.hparams import AlphaEditHyperParams, LocateHyperParams
from kedit_methods_locate.hparams.spread import Projection
from kedit_methods_locate.stats import Sample, statistics_for
from kedit_methods_locate.tuning.candidates import Candidate
from kedit_methods_locate.tuning.grids import Layers

_CHEAP = 1_000_000_000  # parameters; a larger model on a CPU is traced when that is asked for
_FACTS = 10


@frozen
class Traced:
    """The layers to choose among, and what tracing had to say."""

    layers: Layers
    note: str


def tracing_is_cheap(editor: Editor) -> bool:
    """Whether a trace takes seconds rather than minutes."""
    parameters = list(editor.model.parameters())
    return parameters[0].device.type != "cpu" or sum(parameter.numel() for parameter in parameters) < _CHEAP


def traced_layers(editor: Editor, requests: Sequence[EditRequest]) -> Traced:
    """Layers suggested by tracing a few of the facts that the model knows; without any, only their number."""
    from kedit_methods_locate.tracing import Fact, TraceSettings, average, suggest_layers, trace_all

    count = editor.adapter.num_layers
    try:
        facts = [Fact.from_request(request) for request in requests[:_FACTS]]
        traces = trace_all(editor.context(), facts, TraceSettings(kinds=("mlp",), seed=1 + editor.seed % 2**31))
    except InputError as error:
        return Traced(Layers(count), f"nothing was traced: {error}")
    if not traces.traces:
        return Traced(Layers(count), f"nothing was traced: {traces.skipped[0].reason}")
    found = suggest_layers(average(traces.traces), count)
    return Traced(
        Layers(count, found.layer, found.layers), f"causal tracing suggests layer {found.layer}: {found.reason}"
    )


def layers_of(hparams: HyperParams) -> tuple[int, ...]:
    """The layers that settings edit, as far as they tell."""
    if (layers := getattr(hparams, "layers", None)) is not None:
        return tuple(layers)
    return () if (layer := getattr(hparams, "layer", None)) is None else (layer,)


def collect_statistics(editor: Editor, candidates: Sequence[Candidate]) -> tuple[EditWarning, ...]:
    """Have the statistics of all candidates' layers at hand, those that are missing collected in one pass.

    All stay in memory: 12 m^2 bytes for each layer of inner size m. Layers that cannot be had are left to the edits
    that need them, which will say so. Gives what is doubtful about the others.
    """
    wanted: dict[tuple[Sample, Projection], dict[int, LocateHyperParams]] = {}
    for candidate in candidates:
        hparams = candidate.hparams
        if not isinstance(hparams, LocateHyperParams) or not hparams.mom2_adjustment:
            continue
        parts: tuple[Projection, ...] = getattr(hparams, "projections", ("mlp_out",))
        for part in parts:
            layers = wanted.setdefault((Sample.of(hparams), part), {})
            for layer in layers_of(hparams):
                if layer < editor.adapter.num_layers:
                    layers.setdefault(layer, hparams)
    context = editor.context()
    for (_, part), by_layer in wanted.items():
        try:
            solved = not all(isinstance(each, AlphaEditHyperParams) for each in by_layer.values())
            statistics_for(context, sorted(by_layer), by_layer[min(by_layer)], part, factorise=solved)
        except KeditError:
            continue
    return tuple(context.warnings)
