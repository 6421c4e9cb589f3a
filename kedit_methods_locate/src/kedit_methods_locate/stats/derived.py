"""What is worked out from a statistic once and kept: Cholesky factors (m^3 / 3 operations), eigenvectors (10 m^3).

For wide statistics it lies in the cache folder, named after the digest of the statistic's numbers, so that an edit in
another process does not work it out again. A file holds the digest of its own tensors; one that is damaged, cut or of
another version is made anew. Nothing is lost when the folder is deleted.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from kedit_core.errors import PatchFormatError
from kedit_core.files import replacing
from kedit_core.patches import canonical, container
from kedit_core.patches.digests import byte_view

if TYPE_CHECKING:
    from kedit_methods_locate.stats.statistic import Statistic

DISK_FROM = 2048
"""Narrower statistics are worked out faster than they are read."""

_FOLDER = ("statistics", "derived")
_VERSION = 1  # raised when the way something is derived changes its numbers

logger = logging.getLogger(__name__)


def derived(
    cache: Path | None,
    statistic: Statistic,
    name: str,
    make: Callable[[], Mapping[str, Tensor]],
    *,
    from_width: int | None = None,
) -> Mapping[str, Tensor]:
    """The tensors called ``name`` that follow from a statistic: read from the cache folder, or made and put there.

    Args:
        cache: the cache folder (``context.cache``); None keeps nothing on disk.
        name: what they are and all that they depend on beside the statistic's numbers; a file name.
        make: works them out.
        from_width: statistics narrower than this are not kept on disk; None for 2048.

    Read tensors are on the CPU. A folder that cannot be written to is logged, and is no failure.
    """
    if cache is None or statistic.width < (DISK_FROM if from_width is None else from_width):
        return make()
    path = derived_file(cache, statistic, name)
    found = _read(path, name)
    if found is not None:
        return found
    made = make()
    try:
        _write(path, name, made)
    except OSError as error:
        logger.warning("%s could not be kept at %s (%s); it will be worked out again", name, path, error)
    return made


def derived_file(cache: Path, statistic: Statistic, name: str) -> Path:
    """Where it is kept: a folder for the statistic's numbers, a file for the name."""
    return cache.joinpath(*_FOLDER, statistic.digest[:32], f"{name}.safetensors")


def _write(path: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    here = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    hasher = hashlib.sha256()
    for entry in container.file_order([container.entry_of(key, tensor) for key, tensor in here.items()]):
        hasher.update(byte_view(here[entry.name]))
    manifest = {"derived": name, "version": _VERSION, "sha256": hasher.hexdigest()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        container.write(stream, here, canonical.dumps(manifest, "the manifest"))


def _read(path: Path, name: str) -> dict[str, Tensor] | None:
    """What :func:`_write` wrote, or None for anything else."""
    try:
        with path.open("rb") as stream:
            header = container.read_header(stream, path.stat().st_size)
            hasher = hashlib.sha256()
            tensors = container.read_tensors(stream, header, hasher)
    except FileNotFoundError:
        return None
    except (OSError, PatchFormatError) as error:
        logger.warning("%s cannot be read (%s); it is made anew", path, error)
        return None
    if header.manifest != {"derived": name, "version": _VERSION, "sha256": hasher.hexdigest()}:
        logger.warning("%s is damaged or of another version; it is made anew", path)
        return None
    return tensors
