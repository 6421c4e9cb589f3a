"""``kedit push``: put a patch where others can pull it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, json_option, note, say
from kedit_core.cli.patch_files import PATCH_FILE

if TYPE_CHECKING:
    from kedit_hub.pushing import Pushed

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(short_help="Publish a patch on the Hugging Face Hub or in a folder.")
@click.argument("file", metavar="PATCH", type=PATCH_FILE)
@click.argument("target")
@click.option("--message", help="Of the commit on the Hub.")
@click.option("--private", is_flag=True, help="Make a new repository private (one that is public already is refused).")
@click.option("--revision", help="Branch of the repository (main).")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of pushing to the branch.")
@click.option("--title", help="One line for the card.")
@click.option("--license", "license_", metavar="NAME", help="License of the card, e.g. apache-2.0.")
@click.option("--tag", "tags", multiple=True, help="A word to find it by; may be given several times.")
@click.option("--results", type=_FILE, help="JSON of `kedit edit` or `kedit evaluate` about it, for the card's table.")
@click.option("--hide-requests", is_flag=True, help="Leave the facts out of the card (the file still holds them).")
@click.option("--signature", type=_FILE, help="Its signature; by default PATCH.sig where that is there.")
@json_option
def push(
    file: Path,
    target: str,
    message: str | None,
    private: bool,
    revision: str | None,
    create_pr: bool,
    title: str | None,
    license_: str | None,
    tags: tuple[str, ...],
    results: Path | None,
    hide_requests: bool,
    signature: Path | None,
    json_to: str | None,
) -> None:
    """Publish PATCH at TARGET with a card that says what it changes and how it is used.

    TARGET is owner/name for a repository on the Hugging Face Hub (made if it is not there; log in with `hf auth
    login` or HF_TOKEN), or a folder, written ./FOLDER or /FOLDER, that others reach or that a web server serves. The
    file goes there byte for byte, under its id.

    \b
    kedit push oslo.safetensors owner/oslo-fact --results evaluation.json --license apache-2.0
    kedit push oslo.safetensors ./shelf --tag geography
    """
    from kedit_hub.pushing import push as send

    pushed = send(
        file,
        target,
        commit_message=message,
        private=True if private else None,
        revision=revision,
        create_pr=True if create_pr else None,
        title=title,
        license=license_,
        tags=tags,
        results=results,
        hide_requests=hide_requests,
        signature=signature,
    )
    emit(json_to, lambda: _data(pushed), lambda: _show(pushed))
    for text in pushed.notes:
        note(f"note: {text}")


def _data(pushed: Pushed) -> dict[str, Any]:
    return {
        "patch": pushed.id,
        "target": str(pushed.target),
        "file": pushed.file,
        "signature": pushed.signature,
        "changed": pushed.changed,
        "commit": pushed.commit,
        "url": pushed.url,
        "pull": pushed.pinned,
    }


def _show(pushed: Pushed) -> None:
    done = "is now in" if pushed.changed else "was, all of it, already in"
    say(f"patch {pushed.id} {done} {pushed.target}")
    if pushed.signature is not None:
        say(f"  with its signature {pushed.signature}")
    if pushed.url is not None:
        say(f"  {pushed.url}")
    say(f"Others get exactly this with: kedit pull {pushed.pinned}")
