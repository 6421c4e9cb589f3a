"""Pushing a patch: its file byte for byte, its signature, and a card for people; to the Hub or to a folder."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from kedit_core.errors import InputError
from kedit_core.files import read_bounded
from kedit_core.patches import EditPatch, PrivateRequests
from kedit_hub.card import SHELF, Publication, default_title, section
from kedit_hub.places import Folder, Place, Repository, Site, at_revision, read_place
from kedit_hub.records import Entry, check_tags, check_title
from kedit_hub.results import Results
from kedit_hub.shelf import Shelf
from kedit_hub.transfer import MAX_SIGNATURE

if TYPE_CHECKING:
    from kedit_hub.repository import Token

_LICENSE = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}", re.ASCII)


@frozen(kw_only=True)
class Pushed:
    """What was pushed.

    Attributes:
        id: of the patch.
        target: where it is now.
        file: its name there.
        signature: name of its signature there, or None.
        changed: False when all of it was there already.
        commit: of the repository, where it is one.
        url: of that commit, or of the pull request.
        notes: what the author should know.
    """

    id: str
    target: Place
    file: str
    signature: str | None
    changed: bool
    commit: str | None = None
    url: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def pinned(self) -> str:
        """What ``kedit pull`` is given to get exactly this patch."""
        at = f"@{self.commit}" if self.commit is not None else ""
        return f"{self.target}{at}#{self.id}"


def push(
    patch: EditPatch | str | os.PathLike[str],
    target: str | Place,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: Token = None,
    revision: str | None = None,
    create_pr: bool | None = None,
    title: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    results: str | os.PathLike[str] | None = None,
    hide_requests: bool = False,
    signature: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
) -> Pushed:
    """Put a patch where others can pull it.

    Args:
        patch: a patch, or the path of its file (pushed byte for byte).
        target: ``owner/name`` on the Hub, made if it is not there, or a folder.
        commit_message: of the commit on the Hub.
        private: make a new repository private; a public one that is there already is refused.
        token: for the Hub, as huggingface_hub takes it.
        revision: branch to push to.
        create_pr: open a pull request instead of pushing to the branch.
        title: one line for the card.
        license: of the card, as the Hub names it.
        tags: besides ``kedit``, ``knowledge-editing`` and the method.
        results: JSON of ``kedit edit`` or ``kedit evaluate`` about this patch, for the table of the card.
        hide_requests: leave the facts out of the card; the file itself still holds them, unless it was made private.
        signature: its signature file (by default the patch's path + ``.sig`` where that is there).
        endpoint: address of the Hub (HF_ENDPOINT).

    Raises:
        InputError: something given cannot be used; nothing was sent.
        KeditError: it could not be put there.
    """
    place, wanted = read_place(target) if isinstance(target, str) else (target, None)
    place = at_revision(place, revision)
    _check(place, wanted, license, title, tags)
    with _file_of(patch, signature) as (path, loaded):
        file = f"{loaded.id}.safetensors"
        signed = _signature(path if not isinstance(patch, EditPatch) else None, signature)
        this = Publication(
            patch=loaded,
            title=title if title is not None else default_title(loaded),
            file=file,
            pulled=place.name if isinstance(place, Repository) else SHELF,
            signature=None if signed is None else f"{file}.sig",
            hide_requests=hide_requests,
            results=None if results is None else Results.read(Path(results), loaded.id),
            license=license,
            tags=tuple(tags),
        )
        described = title is not None or results is not None or license is not None or hide_requests
        notes = _notes(loaded, hide_requests)
        if isinstance(place, Repository):
            from kedit_hub.sending import send

            return send(
                this,
                path,
                place,
                signature=signed,
                described=described,
                commit_message=commit_message,
                private=private,
                token=token,
                create_pr=create_pr,
                endpoint=endpoint,
                notes=notes,
            )
        if commit_message is not None or private is not None or create_pr is not None:
            raise InputError(f"{place} is a folder; a message, private and pull requests are for the Hub only")
        return _to_shelf(this, path, place, signed, described, notes)


def push_to_hub(
    patch: EditPatch | str | os.PathLike[str],
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: Token = None,
    revision: str | None = None,
    create_pr: bool | None = None,
    title: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    results: str | os.PathLike[str] | None = None,
    hide_requests: bool = False,
    signature: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
) -> Pushed:
    """Push a patch to a repository on the Hugging Face Hub; arguments and errors as of :func:`push`."""
    place, wanted = read_place(repo_id)
    if not isinstance(place, Repository) or wanted is not None:
        raise InputError(f"{repo_id!r} is no repository of the Hub; give owner/name")
    return push(
        patch,
        place,
        commit_message=commit_message,
        private=private,
        token=token,
        revision=revision,
        create_pr=create_pr,
        title=title,
        license=license,
        tags=tags,
        results=results,
        hide_requests=hide_requests,
        signature=signature,
        endpoint=endpoint,
    )


def _check(place: Place, wanted: str | None, license: str | None, title: str | None, tags: Sequence[str]) -> None:
    if wanted is not None:
        raise InputError("a patch is pushed under its own id; leave the part after # out")
    if isinstance(place, Site):
        raise InputError(f"{place} is read through a web server; push to the folder that it serves")
    if license is not None and not _LICENSE.fullmatch(license):
        raise InputError(f"{license!r} is no license's name; give one as the Hub names it, such as apache-2.0")
    if title is not None:
        check_title(title)
    check_tags(tags)


@contextmanager
def _file_of(
    patch: EditPatch | str | os.PathLike[str], signature: str | os.PathLike[str] | None
) -> Iterator[tuple[Path, EditPatch]]:
    """A patch's file and the patch; one that is not on disk is written to a folder that is gone afterwards."""
    if not isinstance(patch, EditPatch):
        yield Path(patch), EditPatch.load(patch, signature=signature)
        return
    with tempfile.TemporaryDirectory(prefix="kedit-") as folder:
        path = Path(folder) / "patch.safetensors"
        patch.save(path)
        yield path, patch


def _signature(path: Path | None, given: str | os.PathLike[str] | None) -> bytes | None:
    """The content of the signature file: the one given, or the one beside the patch; None where there is none."""
    if given is None:
        if path is None or not (found := path.with_name(path.name + ".sig")).is_file():
            return None
    else:
        found = Path(given)
    try:
        return read_bounded(found, MAX_SIGNATURE)
    except OSError as error:
        raise InputError(f"the signature {found} could not be read: {error.strerror or error}") from error


def _notes(patch: EditPatch, hide_requests: bool) -> tuple[str, ...]:
    if not hide_requests or isinstance(patch.requests, PrivateRequests):
        return ()
    return (
        "the card does not show the facts, but the patch file still holds them; make the patch private "
        "(docs/sharing.md) if nobody may read them",
    )


def _to_shelf(
    this: Publication,
    path: Path,
    place: Folder | Site,
    signature: bytes | None,
    described: bool,
    notes: tuple[str, ...],
) -> Pushed:
    patch = this.patch
    entry = Entry(
        id=patch.id,
        file=this.file,
        bytes=patch.size,
        title=this.title,
        method=patch.method.name,
        base_name=patch.base.name,
        architecture=patch.base.architecture,
        tags=this.tags,
        signature=this.signature,
    )
    shelf = Shelf(place)
    entry, changed = shelf.add(path, entry, card=section(this), signature=signature, described=described)
    return Pushed(id=entry.id, target=place, file=entry.file, signature=entry.signature, changed=changed, notes=notes)
