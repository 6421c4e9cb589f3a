"""``kedit train-serac``: the editor checkpoint that the method ``serac`` needs. Imports no torch until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kedit_core.cli.common import emit, json_option, note, progress, say, show_table
from kedit_core.cli.model_options import read_requests, requests_options, roles
from kedit_core.cli.outputs import OutputPath, check_folder
from kedit_core.errors import InputError

_PRESETS = "kedit_methods_memory:presets/serac_training"


@click.command("train-serac")
@click.argument("model")
@requests_options(required=True)
@click.option("--validation", metavar="FILE", help="Requests to validate on; a share of the cases unless given.")
@click.option(
    "--held-out", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1, show_default=True,
    help="Share of the cases that is validated on.",
)  # fmt: skip
@click.option(
    "--classifier", metavar="MODEL", default="distilbert/distilbert-base-cased", show_default=True,
    help="Encoder to start from: a folder, a name on the Hub, or `scratch`: a small one with MODEL's tokens.",
)  # fmt: skip
@click.option(
    "--counterfactual", metavar="MODEL",
    help="Language model to start from, as MODEL is given; none with -p freeze_cntr=true (MODEL itself answers).",
)  # fmt: skip
@click.option("--encoder", default="ngrams", show_default=True, help="Encoder of texts, to find hard negatives by.")
@click.option(
    "--hparams", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML or JSON of settings."
)
@click.option("-p", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting; wins over files.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random.")
@click.option("--dtype", help="Load MODEL in this dtype (as stored, unless given).")
@click.option("--device", help="Put the models on this device, e.g. cuda:0.")
@click.option("--revision", help="Revision of a model from the Hugging Face Hub.")
@click.option("--with", "given", multiple=True, metavar="ROLE=PATH", help="encoder=PATH: an encoder of texts.")
@click.option("--resume", is_flag=True, help="Go on with a training of the same settings that was interrupted.")
@click.option("-o", "--output", required=True, type=OutputPath(path_type=Path), help="Folder of the editor checkpoint.")
@json_option
@click.pass_context
def train_serac(
    context: click.Context,
    /,
    model: str,
    source: str,
    dataset_options: tuple[str, ...],
    limit: int | None,
    validation: str | None,
    held_out: float,
    classifier: str,
    counterfactual: str | None,
    encoder: str,
    hparams: Path | None,
    overrides: tuple[str, ...],
    seed: int,
    dtype: str | None,
    device: str | None,
    revision: str | None,
    given: tuple[str, ...],
    resume: bool,
    output: Path,
    json_to: str | None,
) -> None:
    """Train the scope classifier and the counterfactual model that SERAC edits MODEL with.

    The state to resume from goes to the folder OUTPUT.training.

    \b
    kedit train-serac factworld:llama --requests factworld --classifier scratch -p freeze_cntr=true -o editor
    kedit edit factworld:llama -m serac --with editor=editor --requests cases.jsonl -o facts.safetensors
    """
    from kedit_core.cli.root import catalogue
    from kedit_core.hparams import resolve
    from kedit_core.plugins import Host
    from kedit_methods_memory.hparams.serac import SeracTrainingHyperParams

    resolve(SeracTrainingHyperParams, file=hparams, overrides=overrides)  # faults are told before a model is loaded
    resources = roles(given)
    if unknown := sorted(set(resources) - {"encoder"}):
        raise InputError(f"--with {unknown[0]}=... is no role of this command; it has encoder=PATH")
    check_folder("-o", output, output.absolute().parent)
    installed = catalogue(context)
    host = Host(installed)
    requests = read_requests(source, host, options=dataset_options)[:limit]
    judged = None if validation is None else read_requests(validation, host)

    from kedit_core.editing import Editor
    from kedit_methods_memory.serac.training import Training
    from kedit_methods_memory.serac.training import train_serac as train

    editor = Editor.from_pretrained(model, dtype=dtype, device=device, revision=revision, catalogue=installed)
    shape = editor.adapter.shape
    settings = resolve(SeracTrainingHyperParams, shape, presets=_PRESETS, file=hparams, overrides=overrides).hparams
    training: Training = train(
        editor,
        requests,
        output,
        settings,
        classifier=classifier,
        counterfactual=counterfactual,
        validation=judged,
        held_out=held_out,
        encoder=encoder,
        encoder_folder=resources.get("encoder"),
        seed=seed,
        resume=resume,
        progress=progress,
    )
    emit(json_to, training.to_dict, lambda: _show(training))


def _show(training: Any) -> None:
    outcome = training.outcome
    best = next(each for each in reversed(outcome.history) if each["iteration"] == outcome.best_iteration)
    rows = [(name, f"{value:.4g}") for name, value in best.items() if name != "iteration"]
    show_table(("validation", "value"), rows)
    say(
        f"best at {outcome.best_iteration} of {outcome.iterations} iterations, {training.records} records, "
        f"{training.seconds:.0f} s{', stopped early' if outcome.stopped_early else ''}"
    )
    if outcome.skipped:
        note(f"note: {outcome.skipped} micro-batches were left out, because a loss was not a number")
    say(f"editor checkpoint: {training.folder} (use it with --with editor={training.folder})")
