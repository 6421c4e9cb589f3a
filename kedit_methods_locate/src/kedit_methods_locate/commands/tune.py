"""The command ``kedit tune``. Imports no torch until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kedit_core.cli.common import emit, json_option, note
from kedit_core.cli.model_options import model_options, open_editor, read_requests, requests_options
from kedit_core.cli.outputs import OutputPath
from kedit_core.contract import SCENARIOS
from kedit_methods_locate.commands.tune_view import show
from kedit_methods_locate.tuning import SCORED, check_output, read_tries, save_preset


@click.command()
@model_options
@click.option("--method", "-m", required=True, help="Name of an installed method; see `kedit methods`.")
@requests_options(required=True)
@click.option(
    "--try",
    "tries",
    multiple=True,
    metavar="KEY=A,B,...",
    help="Try these values of a setting; all combinations, and nothing else. For any method.",
)
@click.option("--cases", type=click.IntRange(min=1), default=16, show_default=True, help="Cases of the last round.")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), metavar="MINUTES", help="Stop after so long.")
@click.option("--edits", type=click.IntRange(min=1), help="Edit at most so many facts, counted anew in every trial.")
@click.option(
    "--scenario",
    "--mode",
    "scenario",
    type=click.Choice(SCENARIOS),
    help="How facts will be edited; batch if the method can, else single.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Cases of a batch (8), or requests of a sequential round (1)."
)
@click.option(
    "--score",
    "metrics",
    multiple=True,
    default=SCORED,
    show_default=True,
    help="Metric that the score is the (harmonic) mean of; may be given several times.",
)
@click.option("--protocol", default="generate", show_default=True, help="How answers are judged.")
@click.option(
    "--trace/--no-trace",
    default=None,
    help="Find layers to try by causal tracing; done by default where it takes seconds.",
)
@click.option(
    "--hparams",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML or JSON of settings that stay.",
)
@click.option("--preset", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Preset to begin with.")
@click.option("-p", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting that stays; wins over files.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the edits, and of the choice of cases.")
@click.option("--stats", type=click.Path(exists=True, path_type=Path), help="Statistics file or folder for the method.")
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), help="Text that statistics are taken from.")
@click.option("-o", "--output", type=OutputPath(path_type=Path), help="Where the preset goes (.yaml).")
@click.option("--overwrite", is_flag=True, help="Replace the preset that is there.")
@json_option
@click.pass_context
def tune(
    context: click.Context,
    /,
    method: str,
    source: str,
    dataset_options: tuple[str, ...],
    limit: int | None,
    tries: tuple[str, ...],
    cases: int,
    budget: float | None,
    edits: int | None,
    scenario: str | None,
    batch_size: int | None,
    metrics: tuple[str, ...],
    protocol: str,
    trace: bool | None,
    hparams: Path | None,
    preset: Path | None,
    overrides: tuple[str, ...],
    seed: int,
    stats: Path | None,
    corpus: Path | None,
    output: Path | None,
    overwrite: bool,
    json_to: str | None,
    **model: Any,
) -> None:
    """Find settings of a method for MODEL on a few facts of yours, and write them as a preset.

    Settings are tried on a few cases, the better half of them on more, until one is left; then it is held against the
    untuned settings on cases that nobody was chosen by. Ctrl-C ends it with the best so far.

    \b
    kedit tune MODEL -m memit --requests cases.jsonl --budget 30 -o preset.yaml
    kedit tune MODEL -m rome --requests cases.jsonl --try layer=3,4,5 --try v_lr=0.1,0.5 -o preset.yaml
    kedit edit MODEL -m rome --preset preset.yaml --requests cases.jsonl
    """
    from kedit_core.cli.groups import catalogue
    from kedit_core.plugins import Host

    installed = catalogue(context)
    values = read_tries(tries) if tries else None
    if output is not None:
        check_output(output, overwrite)
    needs = installed.method(method).needs_subject
    requests = read_requests(source, Host(installed), needs_subject=needs, options=dataset_options)[:limit]
    options = {key: value for key, value in (("stats", stats), ("corpus", corpus)) if value is not None}
    editor = open_editor(
        method=method,
        hparams=hparams,
        overrides=overrides,
        preset=preset,
        seed=seed,
        options=options,
        catalogue=installed,
        **model,
    )
    for text in editor.settings.brief if editor.settings else ():
        note(f"note: {text}")

    from kedit_methods_locate.tuning import tune as find

    found = find(
        editor,
        requests,
        tries=values,
        metrics=metrics,
        protocol=protocol,
        scenario=scenario,
        batch_size=batch_size,
        most_cases=cases,
        minutes=budget,
        edits=edits,
        trace=trace,
        tell=lambda text: note(f"note: {text}"),
    )
    if output is not None:
        save_preset(found.preset(output.stem), output, overwrite=overwrite)
    data = {**found.to_dict(), "output": str(output) if output is not None else None}
    emit(json_to, lambda: data, lambda: show(found, output))
