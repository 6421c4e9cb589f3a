"""Finding patches: on the Hub by what cards say, in an index by what it lists. Nothing that is found is checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from kedit_core.errors import InputError
from kedit_hub.faults import printable, told
from kedit_hub.places import Folder
from kedit_hub.shelf import Shelf

if TYPE_CHECKING:
    from kedit_hub.records import Entry
    from kedit_hub.repository import Token

_HIDDEN = ("base_model:", "license:", "region:", "library:")  # tags of the Hub's own


@frozen(kw_only=True)
class Found:
    """A patch of an index, or a repository with patches on the Hub.

    Attributes:
        source: what ``kedit pull`` is given.
        title: one line; of a repository, its name.
        base: the model it is for, as far as it is told.
        tags: its words; the method is one of them.
        downloads: of a repository, else None.
    """

    source: str
    title: str
    base: str
    tags: tuple[str, ...]
    downloads: int | None = None


def search(
    query: str = "",
    *,
    base: str | None = None,
    index: str | None = None,
    limit: int = 20,
    token: Token = None,
    endpoint: str | None = None,
) -> list[Found]:
    """Patches about ``query``, for the model ``base``.

    Args:
        query: words; all of them must be found, in any case of letters.
        base: Hub id or registered name of the model.
        index: a folder or the address of an index, instead of the Hub. ``FOLDER`` may be written without ``./``.
        limit: how many at most.

    Raises:
        InputError: there is no index, or ``limit`` is not positive.
        KeditError: a server does not answer as it should.
    """
    if limit < 1:
        raise InputError(f"the limit is {limit}; ask for one or more")
    if index is not None:
        return _in_index(query, base, index)[:limit]
    return _on_hub(query, base, limit, token, endpoint)


def _in_index(query: str, base: str | None, index: str) -> list[Found]:
    place = Shelf.at(index).place if "://" in index else Folder(Path(index).expanduser())
    words = query.casefold().split()
    return [
        Found(
            source=f"{place}#{entry.id}",
            title=entry.title,
            base=entry.base_name or entry.architecture,
            tags=(entry.method, *entry.tags),
        )
        for entry in Shelf(place).entries()
        if base in (None, entry.base_name) and all(word in _text(entry) for word in words)
    ]


def _text(entry: Entry) -> str:
    parts = (entry.id, entry.title, entry.method, entry.base_name or "", entry.architecture, *entry.tags)
    return " ".join(parts).casefold()


def _on_hub(query: str, base: str | None, limit: int, token: Token, endpoint: str | None) -> list[Found]:
    from huggingface_hub import HfApi

    from kedit_hub.card import LIBRARY
    from kedit_hub.repository import hub_address

    address = hub_address(endpoint)
    wanted = [LIBRARY, *([] if base is None else [f"base_model:{base}"])]
    found = []
    with told(f"the search on {address}"):
        for info in HfApi(endpoint=address, token=token).list_models(
            filter=wanted, search=query or None, sort="downloads", limit=limit
        ):
            tags = [printable(str(tag), 64) for tag in info.tags or ()]
            bases = [tag.removeprefix("base_model:") for tag in tags if tag.startswith("base_model:")]
            own = tuple(tag for tag in tags if not tag.startswith(_HIDDEN) and tag != LIBRARY)
            found.append(
                Found(
                    source=printable(info.id),
                    title=printable(info.id.rpartition("/")[2]),
                    base=", ".join(name for name in bases if ":" not in name),
                    tags=own,
                    downloads=info.downloads,
                )
            )
    return found
