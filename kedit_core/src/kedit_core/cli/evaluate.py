"""``kedit evaluate``: measure what patches change in a model."""

from __future__ import annotations

from typing import Any

import click

from kedit_core.cli.common import emit, json_option, say
from kedit_core.cli.model_options import metrics_options, model_options, open_editor, read_requests, requests_options


@click.command()
@model_options
@requests_options(required=True)
@metrics_options
@json_option
@click.pass_context
def evaluate(
    context: click.Context,
    /,
    source: str,
    dataset_options: tuple[str, ...],
    limit: int | None,
    protocols: tuple[str, ...],
    metrics: tuple[str, ...],
    json_to: str | None,
    **model: Any,
) -> None:
    """Measure MODEL with the given patches against itself without them.

    \b
    kedit evaluate factworld:llama --patch oslo.safetensors --requests cases.jsonl --protocol teacher_forced
    """
    from kedit_core.cli.groups import catalogue
    from kedit_core.evaluation import resolve_metrics, resolve_protocols
    from kedit_core.plugins import Host

    installed = catalogue(context)
    host = Host(installed)
    resolve_protocols(protocols)  # what is misspelt is said before anything is read
    resolve_metrics(metrics, host.metrics())
    requests = read_requests(source, host, options=dataset_options)[:limit]
    editor = open_editor(catalogue=installed, **model)
    evaluation = editor.evaluate(requests, protocols=protocols, metrics=metrics)
    emit(json_to, evaluation.to_dict, lambda: say(evaluation.summary()))
