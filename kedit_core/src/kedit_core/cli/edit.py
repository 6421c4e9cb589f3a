"""``kedit edit``: change facts, say what changed, save the patch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, human_bytes, json_option, note, say, show_table
from kedit_core.cli.model_options import (
    metrics_options,
    model_options,
    open_editor,
    read_requests,
    requests_options,
    with_editor,
)
from kedit_core.cli.outputs import OutputPath, check_folder, replaceable
from kedit_core.cli.patch_files import check_patch_output
from kedit_core.cli.plan import show_plan
from kedit_core.contract import SCENARIOS
from kedit_core.errors import InputError
from kedit_core.requests import EditRequest, check_requests

if TYPE_CHECKING:
    from kedit_core.editing import Editor, EditResult, EditWarning
    from kedit_core.patches import EditPatch

_LONGEST = 50  # letters of a file's name, of up to four bytes each: file systems allow 255 in all

_WARNINGS = 3  # of each kind on the screen
_ANSWERS = 20  # requests whose answers are shown
_RELIABILITY = "gen_free.reliability"  # has the answers to the edits' own prompts


@click.command()
@model_options
@click.option("--method", "-m", required=True, help="Name of an installed method; see `kedit methods`.")
@click.option("--prompt", help="Text that the model should complete with the target.")
@click.option("--subject", help="What the fact is about; words of the prompt.")
@click.option("--target", help="The new answer.")
@click.option("--ground-truth", help="The answer before the edit, if known.")
@requests_options(required=False)
@click.option("--mode", type=click.Choice(SCENARIOS), help="Scenario; batch if the method can, else sequential.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Requests per sequential round."
)
@click.option(
    "--hparams", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML or JSON of settings."
)
@click.option(
    "--preset", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Preset to use for this model."
)
@click.option("-p", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting; wins over files.")
@click.option("--seed", type=int, default=0, show_default=True, help="Everything random follows from it.")
@metrics_options
@click.option("--no-evaluate", is_flag=True, help="Only edit; measure nothing.")
@click.option("--stats", type=click.Path(exists=True, path_type=Path), help="Statistics file or folder for the method.")
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), help="Text that statistics are taken from.")
@click.option(
    "-o", "--output", type=OutputPath(path_type=Path), help="Where the patch goes (single mode, many cases: a folder)."
)
@click.option(
    "--editor",
    "trained",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Trained editor (see `kedit train`); short for --with editor=FOLDER.",
)
@click.option("--plan", is_flag=True, help="Say what would be done, and do nothing.")
@json_option
@click.pass_context
def edit(
    context: click.Context,
    /,
    method: str,
    prompt: str | None,
    subject: str | None,
    target: str | None,
    ground_truth: str | None,
    source: str | None,
    dataset_options: tuple[str, ...],
    limit: int | None,
    mode: str | None,
    batch_size: int,
    hparams: Path | None,
    preset: Path | None,
    overrides: tuple[str, ...],
    seed: int,
    protocols: tuple[str, ...],
    metrics: tuple[str, ...],
    no_evaluate: bool,
    stats: Path | None,
    corpus: Path | None,
    trained: Path | None,
    output: Path | None,
    plan: bool,
    json_to: str | None,
    **model: Any,
) -> None:
    """Edit facts in MODEL and save the patch.

    \b
    kedit edit factworld:llama -m rome --prompt "The capital of France is" --subject France --target Oslo -o oslo
    kedit edit MODEL -m rome --requests cases.jsonl --mode single --json out.json
    """
    from kedit_core.cli.groups import catalogue
    from kedit_core.evaluation import resolve_metrics, resolve_protocols
    from kedit_core.plugins import Host

    installed = catalogue(context)
    needs_subject = installed.method(method).needs_subject
    host = Host(installed)
    resolve_protocols(protocols)  # what is misspelt is said before anything is read
    resolve_metrics(metrics, host.metrics())
    if source is None:
        requests = [_request(needs_subject, prompt, subject, target, ground_truth)]
        if dataset_options:
            raise InputError("--dataset-option goes with --requests, which says what is read; leave it out")
    elif any(text is not None for text in (prompt, subject, target, ground_truth)):
        raise InputError("give either --requests, or --prompt with --subject and --target, not both")
    else:
        requests = read_requests(source, host, needs_subject=needs_subject, options=dataset_options)[:limit]
    many_files = mode == "single" and len({request.case_id or id(request) for request in requests}) > 1
    _check_output(output, folder=many_files)
    if trained is not None:
        model["given"] = with_editor(model["given"], trained)
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
    told = _tell_settings(editor)
    if plan:
        details = editor.plan(requests, scenario=mode, batch_size=batch_size)
        _tell_settings(editor, told)
        emit(json_to, lambda: details, lambda: show_plan(details))
        return
    editor.prepare(requests)  # a prompt that the method refuses is told in its words, not in the generator's
    before = editor.answer([request.prompt for request in requests]) if len(requests) == 1 else []
    saver = _CaseSaver(output) if output is not None and many_files else None
    result = editor.edit(
        requests,
        scenario=mode,
        batch_size=batch_size,
        evaluate=not no_evaluate,
        protocols=protocols,
        metrics=metrics,
        on_patch=saver,
    )
    _tell_settings(editor, told)
    saved = None
    if output is not None and not many_files:
        result.patch.save(output)
        saved = output
    after = _after(editor, result) if len(requests) == 1 else []
    data = {**result.to_dict(), "output": str(output) if output is not None else None}
    emit(json_to, lambda: data, lambda: _show(result, before, after, saved, saver))


class _CaseSaver:
    """Saves each case's patch as soon as it is made, so that an interrupted run keeps what it had.

    A file of the folder that is no patch is not replaced: the patch gets another name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: set[str] = set()

    def __call__(self, patch: EditPatch, requests: tuple[EditRequest, ...]) -> None:
        from kedit_core.patches.container import KEY

        self.folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^\w.-]+", "_", requests[0].case_id or requests[0].id)[:_LONGEST]
        # "a/b" and "a_b" are two cases
        names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
        free = (name for name in names if name not in self.names and replaceable(self._path(name), KEY))
        self.names.add(name := next(free))
        patch.save(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _request(
    needs_subject: bool, prompt: str | None, subject: str | None, target: str | None, ground_truth: str | None
) -> EditRequest:
    if prompt is None or target is None:
        raise InputError("there is nothing to edit: give --prompt and --target (and --subject), or --requests FILE")
    request = EditRequest(prompt=prompt, subject=subject, target_new=target.strip(), ground_truth=ground_truth)
    check_requests([request], needs_subject=needs_subject)  # before a model is loaded
    return request


def _check_output(output: Path | None, *, folder: bool) -> None:
    """Refuse a place that cannot be written before the work is done, not after it."""
    if output is None:
        return
    if folder and output.suffix == ".safetensors":
        raise InputError(f"-o {output} names a patch file, and mode single writes one per case; give a folder")
    if folder and output.exists() and not output.is_dir():
        raise InputError(f"-o {output} is a file, and mode single writes one patch per case; give a folder")
    if folder:
        check_folder("-o", output, output if output.is_dir() else output.absolute().parent)
    else:
        check_patch_output(output)


def _tell_settings(editor: Editor, told: Collection[str] = ()) -> tuple[str, ...]:
    """Say where settings come from; when no preset fits the model, the user should know that they are a guess.

    Gives all that has been said; what was ``told`` is not said again.
    """
    notes = editor.settings.brief if editor.settings else ()
    for text in notes:
        if text not in told:
            note(f"note: {text}")
    return notes


def _after(editor: Editor, result: EditResult) -> list[str]:
    prompts = [request.prompt for request in result.requests]
    if result.scenario != "single":
        return editor.answer(prompts)
    with editor.applied(result.patch):
        return editor.answer(prompts)


def _show(
    result: EditResult, before: list[str], after: list[str], saved: Path | None, saver: _CaseSaver | None
) -> None:
    for request, old, new in zip(result.requests, before, after, strict=False):
        say(f"{request.prompt} ...")
        show_table(
            ("", ""), [("before", old or "(nothing)"), ("after", new or "(nothing)"), ("wanted", request.target_new)]
        )
        if result.evaluation is not None or result.warnings or saved is None:  # else the next begins with an empty line
            say()
    _show_answers(result)
    if result.evaluation is not None:
        say(result.evaluation.summary())
    _show_warnings(result)
    if saver is not None:
        say(f"\n{len(saver.names)} patches are in {saver.folder}")
    if saved is not None:
        say(f"\npatch {result.patch.id[:12]} is in {saved} ({human_bytes(saved.stat().st_size)})")
    say(f"{len(result.requests)} request{'s' * (len(result.requests) != 1)} edited in {result.seconds:.1f} s")
    if saved is None and saver is None:
        say("no patch was saved; give -o FILE (or -o FOLDER with --mode single)")


def _show_answers(result: EditResult) -> None:
    """Answers before and after a few edits made together, as the evaluation has read them."""
    judged = result.evaluation.metrics.get(_RELIABILITY) if result.evaluation is not None else None
    if judged is None or result.scenario == "single" or not 2 <= len(result.requests) <= _ANSWERS:
        return
    rows = [
        (request.prompt, _answer(output, "base"), _answer(output, "edited"), request.target_new)
        for request, output in zip(result.requests, judged.outputs, strict=False)
        if output.get("prompt") == request.prompt
    ]
    if len(rows) == len(result.requests):
        show_table(("prompt", "before", "after", "wanted"), rows)
        say()


def _answer(output: Mapping[str, Any], key: str) -> str:
    return (output.get(key) or "").strip() or "(nothing)"


def _show_warnings(result: EditResult) -> None:
    """A few warnings of each kind, and how many more there are (all are in the JSON)."""
    by_code: dict[str, list[EditWarning]] = {}
    for warning in result.warnings:
        by_code.setdefault(warning.code, []).append(warning)
    for code, warnings in by_code.items():
        for warning in warnings[:_WARNINGS]:
            note(f"warning: {warning.message}; {warning.remedy}")
        if len(warnings) > _WARNINGS:
            note(f"warning: and {len(warnings) - _WARNINGS} more of {code}; --json has them all")
