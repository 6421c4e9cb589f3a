"""Causal tracing: which (token, block) states carry the recall of a fact, and which layers that suggests to edit.

Names are imported when they are first used, so that the command can offer its options without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit_methods_locate.tracing.facts import Fact, TracedPrompt, traced_prompt
    from kedit_methods_locate.tracing.figure import draw_average, draw_trace, save_figure
    from kedit_methods_locate.tracing.many_facts import PLACES, AverageTrace, Place, average, place_of
    from kedit_methods_locate.tracing.noise import Noise, resolve_noise
    from kedit_methods_locate.tracing.one_fact import Skipped, Traces, UnknownFactError, trace, trace_all
    from kedit_methods_locate.tracing.record import Trace
    from kedit_methods_locate.tracing.settings import KINDS, Kind, NoiseRule, TraceSettings, severed_kind
    from kedit_methods_locate.tracing.suggest import (
        RelativeSimilarity,
        Suggestion,
        located_layers,
        rsim,
        suggest_layers,
    )

_HOMES = {
    "KINDS": "settings",
    "PLACES": "many_facts",
    "AverageTrace": "many_facts",
    "Fact": "facts",
    "Kind": "settings",
    "Noise": "noise",
    "NoiseRule": "settings",
    "Place": "many_facts",
    "RelativeSimilarity": "suggest",
    "Skipped": "one_fact",
    "Suggestion": "suggest",
    "Trace": "record",
    "TraceSettings": "settings",
    "TracedPrompt": "facts",
    "Traces": "one_fact",
    "UnknownFactError": "one_fact",
    "average": "many_facts",
    "draw_average": "figure",
    "draw_trace": "figure",
    "located_layers": "suggest",
    "place_of": "many_facts",
    "resolve_noise": "noise",
    "rsim": "suggest",
    "save_figure": "figure",
    "severed_kind": "settings",
    "suggest_layers": "suggest",
    "trace": "one_fact",
    "trace_all": "one_fact",
    "traced_prompt": "facts",
}

__all__ = [
    "KINDS",
    "PLACES",
    "AverageTrace",
    "Fact",
    "Kind",
    "Noise",
    "NoiseRule",
    "Place",
    "RelativeSimilarity",
    "Skipped",
    "Suggestion",
    "Trace",
    "TraceSettings",
    "TracedPrompt",
    "Traces",
    "UnknownFactError",
    "average",
    "draw_average",
    "draw_trace",
    "located_layers",
    "place_of",
    "resolve_noise",
    "rsim",
    "save_figure",
    "severed_kind",
    "suggest_layers",
    "trace",
    "trace_all",
    "traced_prompt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
