"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_BESIDE = ".kedit-*.tmp"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream to a file beside ``path`` that takes its place in one step when the block ends well.

    A link is followed. What is no ordinary file (a device, a pipe) is written to, never replaced by a file.

    Raises OSError.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        with target.open("wb") as stream:
            yield stream
        return
    beside = target.parent / _BESIDE.replace("*", secrets.token_hex(8))  # fits where the name does
    try:
        with beside.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(target)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove, at any depth, what killed processes left of :func:`replacing`; for a folder that nobody writes to."""
    for path in Path(folder).rglob(_BESIDE):
        with suppress(OSError):
            path.unlink()
