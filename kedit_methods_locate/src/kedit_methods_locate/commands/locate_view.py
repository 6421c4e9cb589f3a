"""What ``kedit locate`` shows: effects by token and layer, averages, and the suggestion. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kedit_core.cli.common import say, show_table
from kedit_methods_locate.tracing.settings import severed_kind

if TYPE_CHECKING:
    from kedit_methods_locate.tracing import AverageTrace, Suggestion, Trace, Traces

_NUMBERS = 16  # layers that are shown as numbers; of deeper models each layer is one sign
_SIGNS = " ▁▂▃▄▅▆▇█"
_FAINT = 0.05  # of the strongest effect: shown as a dot, so that the strong ones stand out
_TITLES: Mapping[str, str] = {
    "block": "one block's residual state restored",
    "mlp": "MLP outputs restored, windows of {}",
    "attn": "attention outputs restored, windows of {}",
    severed_kind("mlp"): "one block's state restored, MLPs severed",
    severed_kind("attn"): "one block's state restored, attention severed",
}


def show(traces: Traces, averaged: AverageTrace, suggestion: Suggestion | None) -> None:
    """Print the result: the table of one fact, or the averages of several."""
    if len(traces.traces) == 1:
        _show_fact(traces.traces[0])
    if len(traces.traces) > 1:
        _show_average(averaged)
    if traces.skipped:
        say(f"skipped: {len(traces.skipped)} facts whose expected answer the model does not give")
    if suggestion is not None:
        _show_suggestion(suggestion)


def _show_fact(trace: Trace) -> None:
    say(f"{trace.prompt} {trace.answer}")
    _show_strength(trace.high, trace.low, trace.noise.get("rule"), trace.noise.get("scale"))
    subject = {index for start, end in trace.subjects for index in range(start, end)}
    names = [f"{token}{' *' * (index in subject)}" for index, token in enumerate(trace.tokens)]
    for kind in trace.scores:
        _show_effects("token (* subject)", names, trace.effect(kind).tolist(), kind, trace.window)


def _show_average(averaged: AverageTrace) -> None:
    model = averaged.model.get("name") or averaged.model.get("architecture")
    say(f"{averaged.facts} facts that {model} knows, averages")
    _show_strength(averaged.high, averaged.low, averaged.noise.get("rule"), averaged.noise.get("scale"))
    rows = [(number, words) for number, place, words in averaged.rows() if place != "before"]
    names = [f"{words} ({averaged.tokens[number]})" for number, words in rows]
    for kind, table in averaged.effects.items():
        effects = [table[number].tolist() for number, _ in rows]
        _show_effects("place (tokens)", names, effects, kind, averaged.window)


def _show_strength(high: float, low: float, rule: str | None, scale: float | None) -> None:
    strength = "" if scale is None else f" = {scale:.3g}"
    say(f"answer's probability: {high:.3f} clean, {low:.3f} corrupted (noise {rule}{strength})\n")


def _show_effects(head: str, names: Sequence[str], effects: list[list[float]], kind: str, window: int) -> None:
    """Indirect effects in hundredths of a probability, those far below the strongest as a dot."""
    layers = len(effects[0])
    top = max(0.0, *(max(row) for row in effects))
    title = f"{_TITLES[kind].format(window)}: probability given back, in percent"
    if layers <= _NUMBERS:
        columns = [head, *(str(layer) for layer in range(layers))]
        rows = [[name, *(_number(value, top) for value in row)] for name, row in zip(names, effects, strict=True)]
    else:
        columns = [head, f"layers 0 to {layers - 1}", "most", "at"]
        rows = [
            [name, "".join(_sign(value, top) for value in row), f"{100 * max(row):.1f}", str(row.index(max(row)))]
            for name, row in zip(names, effects, strict=True)
        ]
    say(title)
    show_table(columns, rows)
    say()


def _number(value: float, top: float) -> str:
    return "." if abs(value) < max(_FAINT * top, 5e-4) else f"{100 * value:.1f}"


def _sign(value: float, top: float) -> str:
    share = value / top if top > 0 else 0.0
    return _SIGNS[round(min(max(share, 0.0), 1.0) * (len(_SIGNS) - 1))]


def _show_suggestion(suggestion: Suggestion) -> None:
    first, last = suggestion.layers[0], suggestion.layers[-1]
    spread = str(first) if first == last else f"{first}-{last}"
    say(f"suggested: layer {suggestion.layer} for methods that edit one, layers {spread} for those that spread an edit")
    say(f"because {suggestion.reason}")
