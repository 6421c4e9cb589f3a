"""``kedit evaluate``: measure what patches change in a model."""

from __future__ import annotations

from typing import Any

import click

from kedit_core.cli.common import emit, json_option, say
from kedit_core.cli.model_options import model_options, open_editor, read_requests


@click.command()
@model_options
@click.option(
    "--requests", "source", metavar="FILE", required=True, help="Requests with probes, or a registered dataset."
)
@click.option("--limit", type=click.IntRange(min=1), help="Take only the first N requests.")
@click.option(
    "--protocol", "protocols", multiple=True, default=("generate",), show_default=True, help="How answers are judged."
)
@json_option
@click.pass_context
def evaluate(
    context: click.Context,
    /,
    source: str,
    limit: int | None,
    protocols: tuple[str, ...],
    json_to: str | None,
    **model: Any,
) -> None:
    """Measure MODEL with the given patches against itself without them.

    \b
    kedit evaluate factworld:llama --patch oslo.safetensors --requests cases.jsonl --protocol teacher_forced
    """
    from kedit_core.cli.root import catalogue
    from kedit_core.evaluation import resolve_protocols
    from kedit_core.plugins import Host

    installed = catalogue(context)
    requests = read_requests(source, Host(installed))[:limit]
    resolve_protocols(protocols)
    editor = open_editor(catalogue=installed, **model)
    evaluation = editor.evaluate(requests, protocols=protocols)
    emit(json_to, evaluation.to_dict, lambda: say(evaluation.summary()))
