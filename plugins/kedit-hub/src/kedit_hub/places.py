"""Where patches are: a repository on the Hugging Face Hub, a folder, or an index on a web server, told by its text.

``owner/name`` is always the Hub; a folder is written as one: ``./shelf``, ``../shelf``, ``/srv/shelf``, ``~/shelf``.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

from attrs import evolve, frozen

from kedit_core.errors import InputError

INDEX = "index.json"

_ID = re.compile(r"[0-9a-f]{8,64}")
_PINNED = re.compile(r"(?P<where>.+)#(?P<id>[0-9a-fA-F]{8,64})", re.DOTALL)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]{0,254}", re.ASCII)
_FOLDER = re.compile(r"(\.{1,2}|~[^/]*)?(/.*)?", re.DOTALL)  # begins with /, ./, ../ or ~, or is . or ..


@frozen
class Repository:
    """A model repository on the Hub: ``owner/name``, and a branch, tag or commit (None: its main branch)."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.name


@frozen
class Folder:
    """A folder with an index of the patches in it."""

    path: Path

    def __str__(self) -> str:
        """As it is written on a command line, so with ``./`` where it could be read as a repository."""
        text = str(self.path)
        return text if _FOLDER.fullmatch(text) else f"./{text}"


@frozen
class Site:
    """A folder with an index that a web server serves; ``url`` ends with a slash."""

    url: str

    def __str__(self) -> str:
        return self.url


Place: TypeAlias = Repository | Folder | Site


def read_place(text: str) -> tuple[Place, str | None]:
    """The place that ``text`` names, and the id (or its beginning) after a ``#``.

    Raises InputError for text that names none, and for URLs that are neither https nor of this machine.
    """
    pinned = _PINNED.fullmatch(text)
    where, wanted = (text, None) if pinned is None else (pinned["where"], pinned["id"].lower())
    if "://" in where:
        return _from_url(where), wanted
    if where and _FOLDER.fullmatch(where):
        return Folder(Path(where).expanduser()), wanted
    name, at, revision = where.partition("@")
    if not _REPO.fullmatch(name) or len(name) > 96 or "--" in name or ".." in name:
        raise InputError(
            f"{text!r} is no place of patches; give owner/name for the Hugging Face Hub, ./FOLDER for a folder, or an "
            "https:// address of an index"
        )
    return Repository(name, check_revision(revision) if at else None), wanted


def check_revision(revision: str) -> str:
    """The revision; InputError for what can be no branch, tag or commit."""
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise InputError(f"{revision!r} is no branch, tag or commit; give its name, or leave it out")
    return revision


def at_revision(place: Place, revision: str | None) -> Place:
    """The place at a revision that was given apart; InputError where there are none, or where two are given."""
    if revision is None:
        return place
    if not isinstance(place, Repository):
        raise InputError(f"{place} has no revisions, only repositories on the Hub do; leave the revision out")
    if place.revision not in (None, revision):
        raise InputError(f"{place}@{place.revision} and the revision {revision} differ; give one of them")
    return evolve(place, revision=check_revision(revision))


def one_id(first: str | None, second: str | None) -> str | None:
    """The id given in either way, in lower case; InputError when it is none, or when the two differ."""
    found = [each.lower() for each in (first, second) if each is not None]
    for each in found:
        if not _ID.fullmatch(each):
            raise InputError(f"{each!r} is no patch's id; give its 64 hexadecimal digits, or at least the first 8")
    if len(found) == 2 and not (found[0].startswith(found[1]) or found[1].startswith(found[0])):
        raise InputError(f"two ids are given, {found[0]} and {found[1]}; give one of them")
    return max(found, key=len, default=None)


def check_url(url: str) -> SplitResult:
    """The parts of an address that may be read from: https, or http on this very machine.

    Raises InputError.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"{url!r} is no address ({error}); check it") from None
    if not host:
        raise InputError(f"{url!r} names no host; check the address")
    if parts.username is not None or parts.password is not None:
        raise InputError(f"the address at {host} holds a user name, which kedit passes on to nobody; leave it out")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_this_machine(host)):
        raise InputError(f"{url!r} is not https; anybody on the way could change what is read, so it is refused")
    return parts


def _from_url(text: str) -> Place:
    if text.startswith("file://"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise InputError(f"{text!r} names no folder of this machine; write file:///path/of/the/folder")
        return Folder(_without_index(Path(unquote(parts.path))))
    parts = check_url(text)
    if parts.query or parts.fragment:
        raise InputError(f"{text!r} has a part after ? or #; give the plain address of the index (and an id with --id)")
    path = parts.path.removesuffix(INDEX)
    return Site(parts._replace(path=path if path.endswith("/") else path + "/").geturl())


def _without_index(path: Path) -> Path:
    return path.parent if path.name == INDEX else path


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
