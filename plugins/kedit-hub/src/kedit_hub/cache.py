"""Pulled patches on this machine, by id, and what was last found where. Whatever is read from it is checked again."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from attrs import frozen

from kedit_core.errors import InputError, KeditError
from kedit_core.files import replacing
from kedit_hub.records import strict_json
from kedit_hub.transfer import MAX_SIGNATURE

_BLOCK = 1 << 20
_LONGEST = 2 * MAX_SIGNATURE  # bytes of a record, whose signature is in base64


@frozen(kw_only=True)
class Record:
    """What a source held when it was last asked: which patch, at which commit, with which signature."""

    id: str
    commit: str | None
    signature: bytes | None


@frozen
class Cache:
    """A folder of patches by id.

    Attributes:
        folder: is made when something is stored.
    """

    folder: Path

    def find(self, patch_id: str) -> Path | None:
        """The file of a patch, hashed anew; a file that is damaged is removed and counts as missing."""
        path = self._path(patch_id)
        if not path.is_file():
            return None
        if sha256_of(path) == patch_id:
            return path
        with suppress(OSError):
            path.unlink()
        return None

    def beginning(self, wanted: str) -> list[str]:
        """Ids in the cache that begin with ``wanted``."""
        return sorted(path.stem for path in (self.folder / "patches").glob(f"{wanted}*.safetensors"))

    def store(self, fill: Callable[[BinaryIO], str]) -> tuple[str, Path]:
        """Keep what ``fill`` writes under the SHA-256 that it returns; nothing is kept when it raises.

        Raises KeditError when the folder cannot be written.
        """
        with _writing(self.folder):
            folder = self.folder / "patches"
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".kedit-", suffix=".tmp", dir=folder)
            try:
                with os.fdopen(handle, "wb") as stream:
                    patch_id = fill(stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                Path(name).replace(self._path(patch_id))
            except BaseException:
                with suppress(OSError):
                    Path(name).unlink()
                raise
        return patch_id, self._path(patch_id)

    def drop(self, patch_id: str) -> None:
        """Forget a file that turned out to be no patch."""
        with suppress(OSError):
            self._path(patch_id).unlink()

    def note(self, key: tuple[str, ...], record: Record) -> None:
        """Remember what was found at a source."""
        signature = None if record.signature is None else base64.b64encode(record.signature).decode()
        data = {"format": 1, "key": list(key), "id": record.id, "commit": record.commit, "signature": signature}
        with _writing(self.folder):
            path = self._record(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as stream:
                stream.write(json.dumps(data).encode())

    def recall(self, key: tuple[str, ...]) -> Record | None:
        """What was last found at a source; None when it was never asked, or the record is damaged."""
        try:
            with self._record(key).open("rb") as stream:
                data = strict_json(stream.read(_LONGEST))
            if data["format"] != 1 or data["key"] != list(key):
                return None
            signature = None if data["signature"] is None else base64.b64decode(data["signature"], validate=True)
            return Record(id=str(data["id"]), commit=data["commit"], signature=signature)
        except (OSError, InputError, KeyError, TypeError, ValueError):
            return None

    def _path(self, patch_id: str) -> Path:
        return self.folder / "patches" / f"{patch_id}.safetensors"

    def _record(self, key: tuple[str, ...]) -> Path:
        return self.folder / "found" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes. Memory: one block."""
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KeditError(f"the cache {folder} cannot be written ({error.strerror or error}); give another") from error
