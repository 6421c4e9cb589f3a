"""A shelf: a folder of patches with an index, read in place or through a web server, and filled by ``kedit push``."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote

from attrs import evolve, frozen
from filelock import FileLock, Timeout

from kedit_core.editing.progress import Progress, silent
from kedit_core.errors import InputError, KeditError
from kedit_core.files import open_regular, replacing
from kedit_hub.cache import sha256_of
from kedit_hub.offers import Offer
from kedit_hub.places import INDEX, Folder, Repository, Site, read_place
from kedit_hub.records import MAX_INDEX, Entry, read_index, write_index
from kedit_hub.transfer import MAX_PATCH, check_size, download, download_bytes

if TYPE_CHECKING:
    from kedit_core.patches import EditPatch
    from kedit_core.patches.trust import Trust

_LOCK = ".index.lock"
_PATIENCE = 60.0  # seconds that another push may take
_BLOCK = 1 << 20


@frozen
class Shelf:
    """The patches in a folder or behind an address.

    Attributes:
        place: a :class:`Folder` or a :class:`Site`.
    """

    place: Folder | Site

    @classmethod
    def at(cls, place: str | os.PathLike[str]) -> Shelf:
        """The shelf at ``./FOLDER``, ``https://...`` or ``file://...``; a path object is always a folder.

        Raises InputError for text that names something else.
        """
        if isinstance(place, os.PathLike):
            return cls(Folder(Path(place)))
        found, wanted = read_place(place)
        if isinstance(found, Repository) or wanted is not None:
            raise InputError(f"{place!r} is no shelf; give ./FOLDER or the https:// address of an index")
        return cls(found)

    def __str__(self) -> str:
        return str(self.place)

    def entries(self) -> tuple[Entry, ...]:
        """What the index lists.

        Raises InputError when there is no index, or none that can be read; KeditError when a server does not give it.
        """
        what = f"the index {self}{'' if str(self).endswith('/') else os.sep}{INDEX}"
        if isinstance(self.place, Site):
            return read_index(download_bytes(self.place.url + INDEX, what=what, limit=MAX_INDEX), what)
        with _opened(self.place.path, INDEX, what) as stream:
            return read_index(stream.read(MAX_INDEX + 1), what)

    @property
    def commit(self) -> None:
        """Shelves have none."""
        return None

    def offers(self) -> tuple[Offer, ...]:
        """The index in the form that all places share."""
        return tuple(
            Offer(file=entry.file, id=entry.id, size=entry.bytes, title=entry.title, signature=entry.signature)
            for entry in self.entries()
        )

    def read(self, file: str, *, limit: int) -> bytes:
        """A small file of the folder; raises as :meth:`fetch`."""
        sink = io.BytesIO()
        self.fetch(file, sink, limit=limit)
        return sink.getvalue()

    def fetch(
        self, file: str, sink: BinaryIO, *, limit: int, expected: int | None = None, progress: Progress = silent
    ) -> str:
        """Write one file of the folder to ``sink``; its SHA-256. ``file`` is a name from the index.

        Raises KeditError when it is missing, larger than ``limit`` bytes or not of the size ``expected``.
        """
        what = f"{file} of {self}"
        if isinstance(self.place, Site):
            url = self.place.url + quote(file)
            return download(url, sink, what=what, limit=limit, expected=expected, progress=progress)
        with _opened(self.place.path, file, what) as stream:
            size = os.fstat(stream.fileno()).st_size
            check_size(size, limit, what)
            if expected is not None and size != expected:
                raise KeditError(
                    f"{what} has {size} bytes where the index says {expected}; it was cut short or changed"
                )
            return _copy(stream, sink, limit, what)

    def load(self, id: str, *, max_bytes: int = MAX_PATCH, trust: Trust | None = None) -> EditPatch:
        """The patch with this id (or its beginning), verified; arguments and errors as of :func:`kedit_hub.pull`."""
        from kedit_hub.pulling import pull

        return pull(self.place, id=id, max_bytes=max_bytes, trust=trust).patch

    def add(
        self,
        file: Path,
        entry: Entry,
        *,
        card: str | None = None,
        signature: bytes | None = None,
        described: bool = True,
    ) -> tuple[Entry, bool]:
        """Put a patch file and its entry on the shelf; the entry as it now stands, and whether anything changed.

        A patch that is there already is not written again, and keeps its title and card unless it is ``described``
        anew; tags and a signature are added. Another process that adds at the same time is waited for. The index is
        written last, in one step, so readers never see a patch that is not whole.

        Args:
            card: Markdown for people, written beside the patch as ``<id>.md``.
            signature: content of its signature file.
            described: whether title and card were chosen for this push.

        Raises:
            InputError: the place is no folder, or something that is no plain file stands where one is to be written.
            KeditError: it cannot be written, or another process keeps it locked for a minute.
        """
        if isinstance(self.place, Site):
            raise InputError(f"{self} is read through a web server; push to the folder that it serves")
        folder = self.place.path
        try:
            folder.mkdir(parents=False, exist_ok=True)
            _refuse_links(folder, (_LOCK, INDEX))
            with FileLock(folder / _LOCK, timeout=_PATIENCE):
                return self._add(folder, file, entry, card, signature, described)
        except Timeout as error:
            raise KeditError(
                f"{self} is being written by another process for more than {_PATIENCE:.0f} s; try again"
            ) from error
        except OSError as error:
            raise KeditError(
                f"nothing can be written to the folder {self} ({error.strerror or error}); give another"
            ) from error

    def _add(
        self, folder: Path, file: Path, entry: Entry, card: str | None, signature: bytes | None, described: bool
    ) -> tuple[Entry, bool]:
        known = {each.id: each for each in (self.entries() if (folder / INDEX).exists() else ())}
        old = known.get(entry.id)
        new = entry if old is None else _joined(old, entry, described)
        if old is not None and not described and old.signature == new.signature:
            card = None
        changed = new != old
        _refuse_links(folder, (new.file, f"{new.file}.sig", f"{entry.id}.md"))
        path = folder / new.file
        if not path.is_file() or sha256_of(path) != entry.id:
            _put(file, path, entry.id)
            changed = True
        beside = [(new.signature, signature), (f"{entry.id}.md", None if card is None else card.encode())]
        for name, data in beside:
            if name is not None and data is not None and not _same(folder / name, data):
                with replacing(folder / name) as stream:
                    stream.write(data)
                changed = True
        if changed:
            with replacing(folder / INDEX) as stream:
                stream.write(write_index([*({**known, entry.id: new}).values()]))
        return new, changed


def _joined(old: Entry, new: Entry, described: bool) -> Entry:
    """The entry of a patch that is pushed again: its file stays, what is new is added."""
    tags = tuple(dict.fromkeys((*old.tags, *new.tags)))
    signature = old.signature or (None if new.signature is None else f"{old.file}.sig")
    return evolve(old, title=new.title if described else old.title, tags=tags, signature=signature)


def _refuse_links(folder: Path, names: Sequence[str]) -> None:
    """InputError where one of the names is a link, a pipe or a folder: writing there could change a file elsewhere."""
    for name in names:
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise InputError(f"{path} is no plain file, and a shelf is never written through a link; remove it")


@contextmanager
def _opened(folder: Path, name: str, what: str) -> Iterator[BinaryIO]:
    """A plain file of the folder itself: no link that leads out of it, no device that could block."""
    path = folder / name
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; check the path")
    if not path.exists():
        raise InputError(f"{what} does not exist; is {folder} a folder that `kedit push` has filled?")
    inside = Path(os.path.realpath(path)).parent == Path(os.path.realpath(folder))
    if not inside or not path.is_file():
        raise InputError(f"{what} is no plain file of that folder; it is not read")
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(open_regular(path))
        except OSError as error:
            raise KeditError(f"{what} could not be read ({error.strerror or error}); check its permissions") from error
        yield stream


def _copy(stream: BinaryIO, sink: BinaryIO, limit: int, what: str) -> str:
    hasher, count = hashlib.sha256(), 0
    while block := stream.read(_BLOCK):
        count += len(block)
        check_size(count, limit, what)  # a file may grow while it is read
        hasher.update(block)
        sink.write(block)
    return hasher.hexdigest()


def _put(source: Path, target: Path, patch_id: str) -> None:
    with source.open("rb") as stream, replacing(target) as sink:
        if _copy(stream, sink, os.fstat(stream.fileno()).st_size, str(source)) != patch_id:
            raise KeditError(f"{source} was changed while it was pushed; push it again")


def _same(path: Path, data: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
