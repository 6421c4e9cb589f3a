"""``kedit train``: the editor that a method's edits need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, human_bytes, json_option, note, progress, say, show_table
from kedit_core.cli.model_options import open_editor, read_requests, requests_options
from kedit_core.cli.outputs import OutputPath, check_folder
from kedit_core.cli.plan import human_time
from kedit_core.errors import InputError

if TYPE_CHECKING:
    from kedit_core.training import Training


@click.command()
@click.argument("model")
@click.option("--method", "-m", required=True, help="Name of an installed method whose editor is trained.")
@requests_options(required=True)
@click.option("--validate", metavar="FILE", help="Requests to validate on; a share of the cases unless given.")
@click.option(
    "--held-out", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1, show_default=True,
    help="Share of the cases that is validated on.",
)  # fmt: skip
@click.option(
    "--hparams", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML or JSON of settings."
)
@click.option(
    "--preset", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Preset to use for this model."
)
@click.option("-p", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting; wins over files.")
@click.option("--option", "texts", multiple=True, metavar="KEY=VALUE", help="What the method's trainer takes beside.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random.")
@click.option("--dtype", help="Load MODEL in this dtype (as stored, unless given); the editor is trained in float32.")
@click.option("--device", help="Put the model on this device, e.g. cuda:0.")
@click.option("--revision", help="Revision of a model from the Hugging Face Hub.")
@click.option("--with", "given", multiple=True, metavar="ROLE=PATH", help="What the trainer needs beside itself.")
@click.option("--resume", is_flag=True, help="Go on with a training of the same settings that was interrupted.")
@click.option("--anew", is_flag=True, help="Start over where a training was interrupted.")
@click.option("--tensorboard", is_flag=True, help="Write measurements for TensorBoard, too.")
@click.option("-o", "--output", required=True, type=OutputPath(path_type=Path), help="Folder of the editor.")
@json_option
@click.pass_context
def train(
    context: click.Context,
    /,
    model: str,
    method: str,
    source: str,
    dataset_options: tuple[str, ...],
    limit: int | None,
    validate: str | None,
    held_out: float,
    hparams: Path | None,
    preset: Path | None,
    overrides: tuple[str, ...],
    texts: tuple[str, ...],
    seed: int,
    dtype: str | None,
    device: str | None,
    revision: str | None,
    given: tuple[str, ...],
    resume: bool,
    anew: bool,
    tensorboard: bool,
    output: Path,
    json_to: str | None,
) -> None:
    """Train the editor with which a method edits MODEL.

    Checkpoints and measurements (metrics.jsonl) go to the folder OUTPUT.training. Several processes train together when
    started with `accelerate launch` or `torchrun`.

    \b
    kedit train MODEL -m METHOD --requests train.jsonl --validate held-out.jsonl -o editor
    kedit edit MODEL -m METHOD --editor editor --requests cases.jsonl -o facts.safetensors
    """
    from kedit_core.cli.groups import catalogue
    from kedit_core.hparams import resolve
    from kedit_core.plugins import Host, load_object

    if resume and anew:
        raise InputError("--resume goes on with a training and --anew throws it away; give one of them")
    installed = catalogue(context)
    info = installed.method(method)
    if info.training is None:
        raise InputError(f"method {method!r} needs no training: edit with it right away (kedit edit)")
    # faults are told before a model is loaded
    resolve(load_object(info.training), preset=preset, file=hparams, overrides=overrides)
    options = _options(texts)
    check_folder("-o", output, output.absolute().parent)
    host = Host(installed)
    requests = read_requests(source, host, needs_subject=info.needs_subject, options=dataset_options)[:limit]
    judged = None if validate is None else read_requests(validate, host, needs_subject=info.needs_subject)

    from kedit_core.training import train as run
    from kedit_core.training.metrics import check_tensorboard
    from kedit_core.training.place import check_output, checkpoint_of
    from kedit_core.training.run import training_settings
    from kedit_core.training.several import processes_here

    check_output(output, resume=resume, anew=anew)
    if tensorboard:
        check_tensorboard()
    processes = processes_here()
    try:
        editor = open_editor(
            model,
            method,
            dtype=dtype,
            device=processes.device(device),
            revision=revision,
            way=None,
            patches=(),
            given=given,
            force=False,
            allow_unverified=False,
            catalogue=installed,
            seed=seed,
        )
        if processes.first:
            for text in training_settings(editor, hparams, overrides, preset).brief:
                note(f"note: {text}")
        training = run(
            editor,
            requests,
            output,
            hparams,
            validation=judged,
            held_out=held_out,
            overrides=overrides,
            preset=preset,
            options=options,
            resume=resume,
            anew=anew,
            processes=processes,
            tensorboard=tensorboard,
            progress=progress,
        )
        if processes.first:
            emit(json_to, training.to_dict, lambda: _show(training))
    except KeyboardInterrupt:
        if processes.first and (found := checkpoint_of(output)) is not None:
            note(f"note: {found} is whole; go on from it with --resume")
        raise
    finally:
        processes.close()


def _options(texts: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE texts as a mapping of texts. Raises InputError for one that is not of that form."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--option {text} is not KEY=VALUE")
        found[key] = value
    return found


def _show(training: Training) -> None:
    outcome, cost = training.outcome, training.cost
    values = {name: value for name, value in outcome.best_values.items() if name != "iteration"}
    show_table(("validation", "value"), [(name, f"{value:.4g}") for name, value in values.items()])
    say(
        f"best at {outcome.best_iteration} of {outcome.iterations} iterations, {training.records} requests, "
        f"{training.validation} held out{', stopped early' if outcome.stopped_early else ''}"
    )
    several = f" in {cost['processes']} processes" if cost["processes"] > 1 else ""
    say(
        f"{human_time(outcome.seconds)}{several}, {cost['seconds_per_iteration']:.3g} s an iteration, "
        f"{human_bytes(cost['peak_memory_bytes'])} beside the model at most"
    )
    for warning in training.warnings:
        note(f"warning: {warning.message}; {warning.remedy}")
    if outcome.skipped:
        note(f"note: {outcome.skipped} micro-batches were left out, because a loss or a gradient was not a number")
    say(
        f"editor: {training.folder} ({human_bytes(cost['editor_bytes'])}, {cost['parameters']:,} parameters); use it "
        f"with --editor {training.folder}"
    )
