"""Writing files so that nobody ever sees half of one, and reading only what is an ordinary file."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

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


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream from an ordinary file; links are followed.

    Opening never waits for the other end of a pipe, also when the file became one after somebody looked.

    Raises OSError, also for a folder, a device or a pipe.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not an ordinary file", str(path))
        yield stream


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of an ordinary file of at most ``limit`` bytes.

    Raises OSError, also for a file that is larger.
    """
    with open_regular(path) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return data


def read_object(path: str | os.PathLike[str], limit: int) -> dict[str, Any]:
    """The JSON object in an ordinary file of at most ``limit`` bytes.

    Raises OSError as :func:`read_bounded` does; ValueError when it is no JSON object.
    """
    try:
        value = json.loads(read_bounded(path, limit))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove, at any depth, what killed processes left of :func:`replacing`; for a folder that nobody writes to."""
    for path in Path(folder).rglob(_BESIDE):
        with suppress(OSError):
            path.unlink()
