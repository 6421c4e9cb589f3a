"""The command ``kedit locate``. Imports no torch until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, json_option, note, say
from kedit_core.cli.model_options import model_options, open_editor, read_requests
from kedit_core.cli.outputs import STDOUT, OutputPath, check_file, drawing
from kedit_core.errors import InputError, MethodError
from kedit_methods_locate.commands.locate_view import show
from kedit_methods_locate.tracing.settings import KINDS, MODULES, OCCURRENCES, TraceSettings

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.plugins import Catalogue
    from kedit_methods_locate.stats import Corpus
    from kedit_methods_locate.tracing import AverageTrace, Fact, Suggestion, Traces

_WARNINGS = 3  # of each kind on the screen


@click.command()
@model_options
@click.option("--prompt", help="Text that the model completes by recall.")
@click.option("--subject", help="What the fact is about; words of the prompt.")
@click.option("--answer", help="What the model should say; whatever it says, unless given.")
@click.option("--requests", "source", metavar="FILE", help="JSON, JSONL or CSV of requests, or a registered dataset.")
@click.option("--cases", type=click.IntRange(min=1), help="Trace only the first N requests.")
@click.option(
    "--noise",
    default="s3",
    show_default=True,
    help="s3: times the standard deviation of the subjects' embeddings; a number; u0.1: uniform; m: normal, as "
    "embeddings in text; t8: Student's t.",
)
@click.option("--replace", is_flag=True, help="Put the noise in place of the embeddings instead of adding it.")
@click.option("--samples", type=click.IntRange(min=1), default=10, show_default=True, help="Corrupted copies.")
@click.option(
    "--window",
    type=click.IntRange(min=1),
    help="Blocks restored together for mlp and attn (10, or a third of the blocks where that is fewer).",
)
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="What is restored; all three, unless given."
)
@click.option(
    "--severed",
    multiple=True,
    type=click.Choice(MODULES),
    help="Also restore blocks with these modules held at their corrupted outputs.",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Of the noise.")
@click.option(
    "--occurrence",
    type=click.Choice(OCCURRENCES),
    default="first",
    show_default=True,
    help="Which is corrupted where the subject occurs more than once.",
)
@click.option("--span", type=click.IntRange(min=1), help="How many layers to suggest for methods that edit a range.")
@click.option(
    "--corpus",
    type=click.Path(exists=True, path_type=Path),
    help="Text for the noise rules m and t (that of the dataset meant for the model, unless given).",
)
@click.option("--plot", type=OutputPath(dir_okay=False, path_type=Path), help="Draw it to this .png, .pdf or .svg.")
@json_option
@click.pass_context
def locate(
    context: click.Context,
    /,
    prompt: str | None,
    subject: str | None,
    answer: str | None,
    source: str | None,
    cases: int | None,
    noise: str,
    replace: bool,
    samples: int,
    window: int | None,
    kinds: tuple[Any, ...],
    severed: tuple[Any, ...],
    seed: int,
    occurrence: Any,
    span: int | None,
    corpus: Path | None,
    plot: Path | None,
    json_to: str | None,
    **model: Any,
) -> None:
    """Find which layers of MODEL carry the recall of facts, by causal tracing, and suggest layers to edit.

    The subject is blurred with noise until the answer is lost; then single states of the clean run are put back, to see
    which of them bring the answer back.

    \b
    kedit locate factworld:llama --prompt "The capital of France is" --subject France --plot france.png
    kedit locate gpt2-xl --requests cases.jsonl --cases 100 --noise 0.1 --json traces.json
    """
    from kedit_core.cli.groups import catalogue

    settings = TraceSettings(
        kinds=kinds or KINDS,
        noise=noise,
        samples=samples,
        window=window,
        seed=seed,
        severed=severed,
        replace=replace,
        occurrence=occurrence,
    )
    _check_plot(plot)
    installed = catalogue(context)
    facts = _facts(installed, source, cases, prompt, subject, answer)
    options = {"corpus": corpus} if corpus is not None else {}
    editor = open_editor(catalogue=installed, options=options, **model)
    work = editor.context()

    from kedit_methods_locate.tracing import average, suggest_layers, trace_all

    traces = trace_all(work, facts, settings, _text(work, settings))
    if not traces.traces:
        _say_warnings(work)
        reason = traces.skipped[0].reason
        rest = f" (and so for all {len(facts)} facts)" if len(facts) > 1 else ""
        raise MethodError(f"nothing was traced{rest}: {reason}")
    averaged = average(traces.traces)
    readable = {"mlp", "block"} & set(averaged.effects)
    suggestion = suggest_layers(averaged, span=span) if readable else None
    data = _data(traces, averaged, suggestion, work)
    emit(json_to, lambda: data, lambda: show(traces, averaged, suggestion))
    _say_warnings(work)
    if plot is not None:  # last: a picture that fails takes nothing with it
        with drawing(plot):
            _draw(plot, traces, averaged)
        if json_to != STDOUT:
            say(f"drawn: {plot}")


def _facts(
    installed: Catalogue,
    source: str | None,
    cases: int | None,
    prompt: str | None,
    subject: str | None,
    answer: str | None,
) -> list[Fact]:
    """The facts that are asked for, before a model is loaded."""
    from kedit_core.plugins import Host
    from kedit_methods_locate.tracing import Fact

    if source is not None:
        if any(text is not None for text in (prompt, subject, answer)):
            raise InputError("give either --requests, or --prompt with --subject, not both")
        requests = read_requests(source, Host(installed), needs_subject=True)[:cases]
        return [Fact.from_request(request) for request in requests]
    if prompt is None or subject is None:
        raise InputError("there is nothing to trace: give --prompt and --subject, or --requests FILE")
    return [Fact(prompt=prompt, subject=subject, answer=answer)]


def _check_plot(plot: Path | None) -> None:
    """Refuse a figure that cannot be drawn or written before the work is done."""
    if plot is None:
        return
    from kedit_methods_locate.tracing import figure

    figure.check_suffix(plot)
    figure.load()
    check_file("--plot", plot)


def _text(work: EditContext, settings: TraceSettings) -> Corpus | None:
    """The text that a noise rule follows, if it follows one."""
    from kedit_methods_locate.stats.lookup import usual_corpus

    return usual_corpus(work) if settings.rule.law in ("normal", "student") else None


def _draw(plot: Path, traces: Traces, averaged: AverageTrace) -> None:
    from kedit_methods_locate.tracing import draw_average, draw_trace, save_figure

    alone = len(traces.traces) == 1
    save_figure(draw_trace(traces.traces[0]) if alone else draw_average(averaged), plot)


def _data(traces: Traces, averaged: AverageTrace, suggestion: Suggestion | None, work: EditContext) -> dict[str, Any]:
    return {
        "model": averaged.model,
        "noise": traces.noise.to_dict(),
        "average": averaged.to_dict(),
        "suggestion": None if suggestion is None else suggestion.to_dict(),
        "skipped": [{"prompt": each.fact.prompt, "reason": each.reason} for each in traces.skipped],
        "warnings": [
            {"code": each.code, "message": each.message, "number": each.number, "remedy": each.remedy}
            for each in work.warnings
        ],
        "traces": [each.to_dict() for each in traces.traces],
    }


def _say_warnings(work: EditContext) -> None:
    """A few warnings of each kind, and how many more there are."""
    codes = dict.fromkeys(each.code for each in work.warnings)
    for code in codes:
        chosen = [each for each in work.warnings if each.code == code]
        for warning in chosen[:_WARNINGS]:
            note(f"warning: {warning.message}; {warning.remedy}")
        if len(chosen) > _WARNINGS:
            note(f"warning: and {len(chosen) - _WARNINGS} more of {code}; --json has them all")
