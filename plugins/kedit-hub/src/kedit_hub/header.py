"""A stream that looks at a file's header as soon as it is whole: gigabytes of something else are not fetched."""

from __future__ import annotations

import struct
from typing import BinaryIO

from attrs import define, field

from kedit_core.errors import PatchFormatError
from kedit_core.patches.canonical import MAX_BYTES
from kedit_core.patches.container import KEY, METADATA

_MARK = f'"{METADATA}":{{"{KEY}":'.encode()  # as canonical JSON writes it


@define
class HeaderFirst:
    """Passes bytes on to ``sink``; PatchFormatError once the header shows that they are no patch.

    Memory: the header, until it is whole. A file that passes has still to be read as a patch.
    """

    sink: BinaryIO
    name: str
    _head: bytearray | None = field(factory=bytearray, init=False)

    def write(self, data: bytes) -> int:
        """Pass on a block."""
        if self._head is not None:
            self._head += data
            if self._looked_at(self._head):
                self._head = None
        return self.sink.write(data)

    def finish(self) -> None:
        """Say that all has come; PatchFormatError when that was less than a header."""
        if self._head is not None:
            raise self._refusal()

    def _looked_at(self, head: bytearray) -> bool:
        """Whether the header was whole and is one of a patch."""
        if len(head) < 8:
            return False
        (length,) = struct.unpack_from("<Q", head)
        if not 2 <= length <= MAX_BYTES:
            raise self._refusal()
        if len(head) < 8 + length:
            return False
        if _MARK not in head[8 : 8 + length]:
            raise self._refusal()
        return True

    def _refusal(self) -> PatchFormatError:
        return PatchFormatError(f"{self.name} is not a kedit patch (its header is no patch's); ask its owner for one")
