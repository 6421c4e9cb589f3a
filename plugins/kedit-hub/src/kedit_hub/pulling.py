"""Pulling a patch: found at its place, fetched within bounds, believed once its bytes have its id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from kedit_core.editing.cache import cache_folder
from kedit_core.editing.progress import Progress, silent
from kedit_core.errors import KeditError, PatchFormatError, UnknownNameError
from kedit_core.patches import EditPatch
from kedit_core.patches.trust import ANYONE, Trust, TrustPolicy, from_environment
from kedit_hub.cache import Cache, Record
from kedit_hub.faults import offline
from kedit_hub.header import HeaderFirst
from kedit_hub.offers import Offer, Source, choose
from kedit_hub.places import Folder, Place, Repository, Site, at_revision, one_id, read_place
from kedit_hub.pulled import Pulled
from kedit_hub.repository import Snapshot, hub_address
from kedit_hub.shelf import Shelf
from kedit_hub.transfer import MAX_PATCH, MAX_SIGNATURE

if TYPE_CHECKING:
    from kedit_hub.repository import Token


def pull(
    source: str | Place,
    *,
    id: str | None = None,
    revision: str | None = None,
    token: Token = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    max_bytes: int = MAX_PATCH,
    endpoint: str | None = None,
    trust: Trust | None = None,
    progress: Progress = silent,
) -> Pulled:
    """The patch at a source, verified.

    Args:
        source: ``owner/name``, ``owner/name@REVISION``, ``./FOLDER``, ``https://...`` or ``file://...``, each also with
            ``#ID`` behind it.
        id: of the patch, or its first 8 digits or more. Without it the source must hold one patch only, and what is
            got is whatever the source gives.
        revision: branch, tag or commit of a repository.
        token: for the Hub, as huggingface_hub takes it.
        cache_dir: where pulled patches are kept (a folder in kedit's cache).
        local_files_only: ask nobody; only what was pulled before. The same holds when HF_HUB_OFFLINE is set.
        force_download: do not take the bytes from the cache.
        max_bytes: larger files are refused.
        endpoint: address of the Hub (HF_ENDPOINT).
        trust: whose signature the patch must have; by default what ``KEDIT_TRUSTED_KEYS`` asks for.

    Raises:
        InputError: the source, id or revision cannot be used, or there are several patches and no id.
        UnknownNameError: no such repository, revision or patch.
        PatchFormatError: what was fetched is no patch.
        UntrustedPatchError: the signature that is asked for is missing or does not fit; nothing in it was looked at.
        KeditError: it cannot be had, is not what was asked for, or is too large.
    """
    trust = trust if trust is not None else from_environment()
    place, inside = read_place(source) if isinstance(source, str) else (source, None)
    place, wanted = at_revision(place, revision), one_id(id, inside)
    cache = Cache(cache_folder() / "hub" if cache_dir is None else Path(cache_dir))
    if not isinstance(place, Folder) and (local_files_only or offline()):
        return _from_cache(cache, place, wanted, endpoint, trust)
    opened = open_source(place, token=token, endpoint=endpoint)
    offer, found, cached = _found(opened, wanted, cache, force_download, max_bytes, progress)
    signature = None if offer.signature is None else opened.read(offer.signature, limit=MAX_SIGNATURE)
    patch = _checked(cache, found, f"{offer.file} of {place}", signature, trust)
    _note(cache, place, wanted, endpoint, Record(id=found, commit=opened.commit, signature=signature))
    path = cache.folder / "patches" / f"{found}.safetensors"
    return Pulled(
        patch=patch,
        path=path,
        source=place,
        file=offer.file,
        commit=opened.commit,
        signature=signature,
        cached=cached,
    )


def from_pretrained(
    repo_id: str,
    *,
    revision: str | None = None,
    id: str | None = None,
    token: Token = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    max_bytes: int = MAX_PATCH,
    endpoint: str | None = None,
    trust: Trust | None = None,
) -> EditPatch:
    """The patch of a repository on the Hub (or at any other source of :func:`pull`), verified.

    With a whole ``id`` (64 digits) a patch that was pulled before is taken from the cache, and nobody is asked (unless
    a signature is, which belongs to the source).

    Raises as :func:`pull`.
    """
    place, inside = read_place(repo_id)
    wanted = one_id(id, inside)
    trust = trust if trust is not None else from_environment()
    if wanted is not None and len(wanted) == 64 and not force_download and not isinstance(trust, TrustPolicy):
        cache = Cache(cache_folder() / "hub" if cache_dir is None else Path(cache_dir))
        if cache.find(wanted) is not None:
            return _checked(cache, wanted, wanted, None, trust)
    return pull(
        place,
        id=wanted,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
        max_bytes=max_bytes,
        endpoint=endpoint,
        trust=trust,
    ).patch


def open_source(place: Place, *, token: Token = None, endpoint: str | None = None) -> Source:
    """A place, opened for reading; KeditError when a repository cannot be had."""
    if isinstance(place, Repository):
        return Snapshot.of(place, token=token, endpoint=endpoint)
    return Shelf(place)


def _found(
    opened: Source, wanted: str | None, cache: Cache, force: bool, max_bytes: int, progress: Progress
) -> tuple[Offer, str, bool]:
    """The offer whose bytes have the id that is wanted, now in the cache; its id, and whether it was there before."""
    left = max_bytes  # for all that have to be tried together
    for offer in choose(opened.offers(), wanted, str(opened.place)):
        if offer.id is not None and not force and cache.find(offer.id) is not None:
            return offer, offer.id, True

        def fill(sink: BinaryIO, offer: Offer = offer, limit: int = left) -> str:
            looked_into = HeaderFirst(sink, f"{offer.file} of {opened.place}")
            stream = cast(BinaryIO, looked_into)
            found = opened.fetch(offer.file, stream, limit=limit, expected=offer.size, progress=progress)
            if offer.id is not None and found != offer.id:
                raise KeditError(
                    f"{offer.file} of {opened.place} is not what is announced: its SHA-256 is {found}, not {offer.id}; "
                    "it was changed or damaged, so it is not kept"
                )
            looked_into.finish()
            if wanted is not None and not found.startswith(wanted):
                raise _AnotherPatchError(sink.tell())
            return found

        try:
            found, _ = cache.store(fill)
        except _AnotherPatchError as other:
            left -= other.size
            continue
        return offer, found, False
    raise UnknownNameError(f"{opened.place} holds no patch {wanted}; ask its owner, or search for it")


class _AnotherPatchError(Exception):
    """What came is not the patch that is wanted, so it is not kept."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def _checked(cache: Cache, patch_id: str, name: str, signature: bytes | None, trust: Trust | None) -> EditPatch:
    """A patch of the cache, whose signature is checked first where one is asked for."""
    if isinstance(trust, TrustPolicy):
        trust.signer(patch_id, signature, name)
    path = cache.folder / "patches" / f"{patch_id}.safetensors"
    try:
        patch = EditPatch.load(path, trust=ANYONE)
    except PatchFormatError as error:
        cache.drop(patch_id)
        raise PatchFormatError(f"{name}: {error}") from error
    if patch.id != patch_id:
        raise KeditError(f"{path} was changed while it was read; is something else writing to the cache?")
    return patch


def _from_cache(
    cache: Cache, place: Repository | Site, wanted: str | None, endpoint: str | None, trust: Trust | None
) -> Pulled:
    record = cache.recall(_key(place, wanted, endpoint))
    known = [record.id] if record is not None else cache.beginning(wanted) if wanted is not None else []
    if len(known) != 1 or cache.find(known[0]) is None:
        named = "" if wanted is None else f" {wanted}"
        raise KeditError(
            f"the patch{named} of {place} was not pulled before, and nobody may be asked (local files only, or "
            "HF_HUB_OFFLINE is set); pull it once with a network"
        )
    patch = _checked(cache, known[0], known[0], None if record is None else record.signature, trust)
    return Pulled(
        patch=patch,
        path=cache.folder / "patches" / f"{patch.id}.safetensors",
        source=place,
        file=None,
        commit=None if record is None else record.commit,
        signature=None if record is None else record.signature,
        cached=True,
    )


def _note(cache: Cache, place: Place, wanted: str | None, endpoint: str | None, record: Record) -> None:
    if not isinstance(place, Folder):
        for pin in dict.fromkeys((wanted, record.id)):
            cache.note(_key(place, pin, endpoint), record)


def _key(place: Repository | Site, wanted: str | None, endpoint: str | None) -> tuple[str, ...]:
    if isinstance(place, Site):
        return ("site", place.url, wanted or "")
    return ("hub", hub_address(endpoint), place.name, place.revision or "", wanted or "")
