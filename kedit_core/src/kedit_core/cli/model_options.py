"""Options that every command on a live model takes, and the Editor they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kedit_core.cli.common import note, progress
from kedit_core.contract import WAYS
from kedit_core.errors import InputError
from kedit_core.requests import EditRequest

if TYPE_CHECKING:
    from kedit_core.editing import Editor
    from kedit_core.patches import EditPatch
    from kedit_core.plugins import Catalogue, Host

F = TypeVar("F", bound=Callable[..., Any])


def model_options(command: F) -> F:
    """``MODEL --dtype --device --revision --way --patch --key --with --force --allow-unverified``, in that order."""
    for option in reversed(
        (
            click.argument("model"),
            click.option("--dtype", help="Load the model in this dtype (as stored, unless given)."),
            click.option("--device", help="Put the model on this device, e.g. cuda:0."),
            click.option("--revision", help="Revision of a model from the Hugging Face Hub."),
            click.option("--way", type=click.Choice(WAYS), help="How low-rank deltas are put on the model."),
            click.option(
                "--patch",
                "patches",
                multiple=True,
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="Apply this patch first; may be given several times, in order.",
            ),
            keys_option,
            click.option(
                "--with",
                "given",
                multiple=True,
                metavar="ROLE=PATH",
                help="What a method or a patch needs beside itself.",
            ),
            click.option(
                "--force", is_flag=True, help="Apply patches although the weights are not those they were made for."
            ),
            click.option(
                "--allow-unverified", is_flag=True, help="Apply patches to weights that cannot be verified (quantised)."
            ),
        )
    ):
        command = option(command)
    return command


def keys_option(command: F) -> F:
    """``--key PUBLIC.pem``: whose patches are read; give ``keys`` to :func:`read_patches` or :func:`open_editor`."""
    return click.option(
        "--key",
        "keys",
        multiple=True,
        metavar="PUBLIC.pem",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Read only patches that one of these keys signed (PATCH.sig); may be given several times.",
    )(command)


def read_patches(files: Sequence[Path], keys: Sequence[Path] = ()) -> list[EditPatch]:
    """Patch files that are signed with one of these keys, where keys are given or ``KEDIT_TRUSTED_KEYS`` names some.

    Raises as :meth:`kedit_core.patches.EditPatch.load`.
    """
    from kedit_core.patches import EditPatch
    from kedit_core.patches.trust import policy_for

    policy = policy_for(keys)
    return [EditPatch.load(path, trust=policy) for path in files]


def requests_options(required: bool) -> Callable[[F], F]:
    """``--requests --dataset-option --limit``: which requests a command works on."""

    def decorate(command: F) -> F:
        for option in reversed(
            (
                click.option(
                    "--requests",
                    "source",
                    metavar="FILE",
                    required=required,
                    help="JSON, JSONL or CSV of requests, a registered dataset, or a copy of one (NAME:PATH).",
                ),
                click.option(
                    "--dataset-option",
                    "dataset_options",
                    multiple=True,
                    metavar="KEY=VALUE",
                    help="How the dataset is read; `kedit datasets` lists them.",
                ),
                click.option("--limit", type=click.IntRange(min=1), help="Take only the first N requests."),
            )
        ):
            command = option(command)
        return command

    return decorate


def metrics_options(command: F) -> F:
    """``--protocol --metric``: how answers are judged, and what is measured beside."""
    for option in reversed(
        (
            click.option(
                "--protocol",
                "protocols",
                multiple=True,
                default=("generate",),
                show_default=True,
                help="How answers are judged.",
            ),
            click.option("--metric", "metrics", multiple=True, help="Measure this, too; `kedit metrics` lists them."),
        )
    ):
        command = option(command)
    return command


def open_editor(
    model: str,
    method: str | None = None,
    *,
    dtype: str | None,
    device: str | None,
    revision: str | None,
    way: str | None,
    patches: Sequence[Path],
    given: Sequence[str],
    force: bool,
    allow_unverified: bool,
    keys: Sequence[Path] = (),
    catalogue: Catalogue | None = None,
    **settings: Any,
) -> Editor:
    """The Editor that the options of :func:`model_options` ask for, with the patches on its model.

    Patch files are read, and their signatures checked with ``keys``, before the model is loaded, so that a bad one
    costs nothing. Plugins that had to be left out
    are told on stderr, also when no Editor can be made without them.
    """
    from kedit_core.editing import Editor
    from kedit_core.patches.trust import policy_for
    from kedit_core.plugins import Catalogue
    from kedit_core.stacks.file import is_stack_file

    if is_stack_file(model):
        settings |= {"force": force, "allow_unverified": allow_unverified, "trust": policy_for(keys), "on_note": note}
    loaded = read_patches(patches, keys)
    resources = roles(given)
    installed = catalogue or Catalogue.installed()
    try:
        editor = Editor.from_pretrained(
            model,
            method,
            dtype=dtype,
            device=device,
            revision=revision,
            way=way,
            resources=resources,
            progress=progress,
            catalogue=installed,
            **settings,
        )
    finally:
        _tell_left_out(installed)
    for patch in loaded:
        editor.apply(patch, force=force, allow_unverified=allow_unverified)
    return editor


def _tell_left_out(installed: Catalogue) -> None:
    """A line for each cross-cutting plugin that is not there: its hooks would be missed in silence."""
    from kedit_core.plugins import PLUGINS

    for problem in installed.problems:
        if problem.found.group == PLUGINS:
            note(f"note: left out: {' '.join(str(problem.error).split())}")


def read_requests(
    source: str, host: Host, *, needs_subject: bool = False, options: Sequence[str] = ()
) -> list[EditRequest]:
    """Requests of a file, of a registered dataset by its name, or of a copy of one (``NAME:PATH``).

    Raises as :func:`kedit_core.editing.datasets.open_requests`.
    """
    from kedit_core.editing.datasets import open_requests, parse_options

    return open_requests(source, host, options=parse_options(options), needs_subject=needs_subject)


def with_editor(given: Sequence[str], folder: Path) -> tuple[str, ...]:
    """``--with`` texts with ``--editor`` among them; InputError when they name an editor already."""
    if "editor" in roles(given):
        raise InputError("--editor and --with editor=... both name an editor; give one of them")
    return (*given, f"editor={folder}")


def roles(given: Sequence[str]) -> dict[str, Path]:
    """role -> path of all ``--with ROLE=PATH``; InputError for one that is not of that form."""
    found: dict[str, Path] = {}
    for text in given:
        role, equals, path = text.partition("=")
        if not equals or not role or not path:
            raise InputError(f"--with {text} is not ROLE=PATH; write for example --with encoder=folder")
        found[role] = Path(path)
    return found
