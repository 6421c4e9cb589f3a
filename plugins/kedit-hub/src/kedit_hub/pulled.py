"""A patch that was pulled, and its way to a file."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import field, frozen

from kedit_core.errors import InputError, KeditError
from kedit_core.files import replacing
from kedit_core.patches import EditPatch
from kedit_core.patches.signing import check_signature_output
from kedit_hub.cache import sha256_of
from kedit_hub.places import Place


@frozen(kw_only=True, eq=False)
class Pulled:
    """A patch that was pulled.

    Attributes:
        patch: itself, wholly checked.
        path: its file in the cache.
        source: where it was asked for.
        file: its name there; None when it came from the cache.
        commit: of the repository, where it came from one.
        signature: content of the signature file beside it, as it came; whose it is, `kedit patch verify --key` tells.
        cached: whether the bytes were in the cache already.
    """

    patch: EditPatch
    path: Path
    source: Place
    file: str | None
    commit: str | None
    signature: bytes | None = field(repr=False)
    cached: bool

    @property
    def id(self) -> str:
        """SHA-256 of the file."""
        return self.patch.id

    @property
    def pinned(self) -> str:
        """What gives exactly this patch again: the source with its commit and the id."""
        at = f"@{self.commit}" if self.commit is not None else ""
        return f"{self.source}{at}#{self.id}"

    def save(self, path: str | os.PathLike[str]) -> Path | None:
        """Write the file to ``path``, byte for byte, and its signature beside it (``path`` + ``.sig``).

        Gives the signature's path, or None where there is none.

        Raises InputError when a signature of another patch, or something that is no signature, lies beside ``path``,
        KeditError when nothing can be written.
        """
        target = Path(path)
        beside = target.with_name(target.name + ".sig")
        if self.signature is not None and not _holds(beside, self.signature):
            check_signature_output(beside)
        stale = self.signature is None and beside.exists() and not _is_file_of(target, self.id)
        if stale:
            raise InputError(
                f"{beside} is there already and is not of this patch, which comes without one; give another name, or "
                "remove it"
            )
        try:
            self.patch.save(target)
            if self.signature is None:
                return None
            with replacing(beside) as sink:
                sink.write(self.signature)
        except OSError as error:
            raise KeditError(f"the patch could not be written to {target}: {error.strerror or error}") from error
        return beside


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def _is_file_of(path: Path, patch_id: str) -> bool:
    return path.is_file() and sha256_of(path) == patch_id
