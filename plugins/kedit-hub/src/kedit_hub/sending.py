"""One commit on the Hub: patch file, signature and card, in a repository that is made if it is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from kedit_core.errors import InputError, KeditError
from kedit_hub.card import Publication
from kedit_hub.faults import ConflictError, printable, told
from kedit_hub.places import Repository
from kedit_hub.pushing import Pushed
from kedit_hub.readme import MAX_README, README, decoded, has_section, readme
from kedit_hub.repository import Snapshot, hub_address, name_of

if TYPE_CHECKING:
    from kedit_hub.repository import Token

_TRIES = 4  # commits, when others push at the same time
_LONGEST_MESSAGE = 500


def send(
    this: Publication,
    path: Path,
    place: Repository,
    *,
    signature: bytes | None,
    described: bool,
    commit_message: str | None,
    private: bool | None,
    token: Token,
    create_pr: bool | None,
    endpoint: str | None,
    notes: tuple[str, ...],
) -> Pushed:
    """Push to a repository; arguments and errors as of :func:`kedit_hub.push`.

    What is there already is not sent again. When somebody else commits in between, the card is made anew on top.
    """
    message = commit_message if commit_message is not None else f"Add kedit patch {this.patch.id[:12]}"
    if not message.strip() or len(message) > _LONGEST_MESSAGE:
        raise InputError(f"the commit message is empty or has more than {_LONGEST_MESSAGE} characters; shorten it")
    address = hub_address(endpoint)
    api, what = HfApi(endpoint=address, token=token), name_of(place, address)
    with told(what):
        api.create_repo(place.name, private=private, exist_ok=True)
    for tries_left in reversed(range(_TRIES)):
        now = Snapshot.of(place, token=token, endpoint=address)
        if private and not now.private:
            raise InputError(
                f"{what} is there already and is public; nothing was sent: make it private on its page first"
            )
        sent, operations = _operations(this, path, now, signature, described)
        if not operations:
            return _pushed(sent, place, now.commit, None, False, notes)
        try:
            with told(what), _quiet():
                info = api.create_commit(
                    place.name,
                    operations,
                    commit_message=message,
                    revision=place.revision,
                    create_pr=create_pr,
                    parent_commit=now.commit,
                )
        except ConflictError:
            if not tries_left:
                raise
            continue
        return _pushed(sent, place, info.oid, info.pr_url or str(info.commit_url), True, notes)
    raise KeditError(f"{what} could not be committed to; try again")  # pragma: no cover


def _operations(
    this: Publication, path: Path, now: Snapshot, signature: bytes | None, described: bool
) -> tuple[Publication, list[CommitOperationAdd]]:
    """What has to be committed so that the repository holds it all, and the publication as it then is."""
    there = next((offer for offer in now.offers() if offer.id == this.patch.id), None)
    operations = []
    if there is None:
        operations.append(CommitOperationAdd(this.file, str(path)))
    else:
        beside = f"{there.file}.sig" if signature is not None else there.signature
        this = evolve(this, file=there.file, signature=beside)
    signed = False
    if signature is not None and this.signature is not None:
        signed = this.signature not in now.files or now.read(this.signature, limit=len(signature) + 1) != signature
        if signed:
            operations.append(CommitOperationAdd(this.signature, signature))
    old = decoded(now.read(README, limit=MAX_README)) if README in now.files else None
    known = old is not None and has_section(old, this.patch.id)
    if operations or described or not known:
        text = readme(this, old)
        if text != old:
            operations.append(CommitOperationAdd(README, text.encode()))
    return this, operations


def _pushed(
    this: Publication, place: Repository, commit: str, url: str | None, changed: bool, notes: tuple[str, ...]
) -> Pushed:
    return Pushed(
        id=this.patch.id,
        target=place,
        file=this.file,
        signature=this.signature,
        changed=changed,
        commit=commit,
        url=None if url is None else printable(url),
        notes=notes,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of the library, which it would also draw into a pipe."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
