"""What a place offers, in one form: patches by file and, where the place tells it, id and size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Protocol

from attrs import frozen

from kedit_core.editing.progress import Progress
from kedit_core.errors import InputError, UnknownNameError
from kedit_hub.places import Place

_ENDING = ".safetensors"
_NAMED_BY_ID = re.compile(r"(?:.*/)?([0-9a-f]{64})\.safetensors")
_TRIED = 16  # files that may be fetched only to learn their ids
_SHOWN = 10


@frozen(kw_only=True)
class Offer:
    """A patch as its place tells of it; nothing is believed before its bytes have been hashed.

    Attributes:
        file: name of its file at the place.
        id: that it is said to have, or None.
        size: bytes that it is said to have, or None.
        title: one line about it, or None.
        signature: name of its signature file, or None.
    """

    file: str
    id: str | None
    size: int | None
    title: str | None
    signature: str | None


class Source(Protocol):
    """A place that has been opened."""

    @property
    def place(self) -> Place:
        """Where it is."""

    @property
    def commit(self) -> str | None:
        """The commit that is read, where there are commits."""

    def offers(self) -> tuple[Offer, ...]:
        """The patches that it offers."""

    def fetch(self, file: str, sink: BinaryIO, *, limit: int, expected: int | None, progress: Progress) -> str:
        """Write a file to ``sink``; its SHA-256."""

    def read(self, file: str, *, limit: int) -> bytes:
        """A small file."""


def offers_among(files: Mapping[str, tuple[int | None, str | None]]) -> tuple[Offer, ...]:
    """The patches among files: name -> size and SHA-256, each None where it is not known.

    A file that is named by its id is held to that name where no SHA-256 is told.
    """
    return tuple(
        Offer(
            file=name,
            id=sha256 if sha256 is not None else _id_in(name),
            size=size,
            title=None,
            signature=f"{name}.sig" if f"{name}.sig" in files else None,
        )
        for name, (size, sha256) in sorted(files.items())
        if name.endswith(_ENDING)
    )


def choose(offers: Sequence[Offer], wanted: str | None, where: str) -> tuple[Offer, ...]:
    """The offer with the id that is wanted, or else those that do not tell their ids and may be it.

    Raises:
        InputError: several offers and no id, or a beginning that several ids have.
        UnknownNameError: no offer at all, or none that can have the id.
    """
    if not offers:
        raise UnknownNameError(f"{where} holds no patch (no {_ENDING} file); check the name and the revision")
    if wanted is None:
        if len(offers) > 1:
            raise InputError(f"{where} holds {len(offers)} patches; choose one with --id: {_listed(offers)}")
        return (offers[0],)
    by_id = {offer.id: offer for offer in offers if offer.id is not None and offer.id.startswith(wanted)}
    if len(by_id) > 1:
        raise InputError(f"{where} holds {len(by_id)} patches whose ids begin with {wanted}; give more of the id")
    untold = tuple(offer for offer in offers if offer.id is None)
    if not by_id and (not untold or len(untold) > _TRIED):
        raise UnknownNameError(f"{where} holds no patch {wanted}; it has {_listed(offers)}")
    return tuple(by_id.values()) or untold


def _id_in(name: str) -> str | None:
    found = _NAMED_BY_ID.fullmatch(name)
    return None if found is None else found[1]


def _listed(offers: Sequence[Offer]) -> str:
    shown = [
        (offer.id or offer.file)[:64] + (f" ({offer.title[:60]})" if offer.title else "") for offer in offers[:_SHOWN]
    ]
    return ", ".join(shown) + (f" and {len(offers) - _SHOWN} more" if len(offers) > _SHOWN else "")
