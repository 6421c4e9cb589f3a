"""Making a folder whole before it is seen: written beside, checked for room, and put in place by renaming."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kedit_core.errors import InputError, KeditError


@contextmanager
def written_beside(target: Path, size: int) -> Iterator[Path]:
    """A new, empty folder that becomes ``target`` when the block ends well, and vanishes when it does not.

    A folder that is already at ``target`` stays whole until then; the two change places by renaming.

    Args:
        size: bytes that will be written, checked against the free space first.

    Raises:
        InputError: the folder that should hold ``target`` is missing.
        KeditError: there is not enough room.
    """
    parent = target.parent
    if not parent.is_dir():
        raise InputError(f"{parent} does not exist, so {target.name} cannot be written there; make it first")
    free = shutil.disk_usage(parent).free
    if free < size:
        raise KeditError(
            f"writing {target} takes {_gigabytes(size)}, and {_gigabytes(free)} are free there; make room or choose "
            "another place"
        )
    fresh = _unused(target)
    try:
        fresh.mkdir()
        yield fresh
        _put(fresh, target)
    finally:
        # gone already when it became the target
        shutil.rmtree(fresh, ignore_errors=True)


def _put(fresh: Path, target: Path) -> None:
    if not target.exists():
        fresh.rename(target)
        return
    former = _unused(target)
    try:
        target.rename(former)
        fresh.rename(target)
    except BaseException:
        if former.exists() and not target.exists():
            former.rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(former, ignore_errors=True)


def files_below(folder: Path, skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Every folder and file below ``folder`` (relative paths, folders before what they hold), links followed.

    ``skip``: names directly in ``folder`` that are left out.

    Raises:
        InputError: a link that leads nowhere or in a circle, or something that is neither file nor folder.
    """
    for path in sorted(folder.iterdir()):
        if path.name not in skip:
            yield from _below(path, folder, (folder.resolve(),))


def _below(path: Path, top: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    if path.is_file():
        yield path.relative_to(top)
        return
    real = path.resolve()
    if not path.is_dir() or real in above:
        raise InputError(f"{path} is neither a file nor a folder, or a link that leads in a circle; remove it")
    yield path.relative_to(top)
    for child in sorted(path.iterdir()):
        yield from _below(child, top, (*above, real))


def _unused(target: Path) -> Path:
    return target.with_name(f".{target.name}.kedit-{os.getpid()}-{secrets.token_hex(4)}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
