"""Patches written in another format, by an exporter of a plugin: what is the same whatever the format."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from typing import Any

from attrs import evolve

from kedit_core.contract import ExporterInfo, ExportReport
from kedit_core.errors import InputError, KeditError
from kedit_core.patches.format import EditPatch

__all__ = ["export_patches"]


def export_patches(
    patches: Sequence[EditPatch],
    exporter: ExporterInfo,
    out: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write patches of one base, which stand for their sum in stack order, to ``out`` in the exporter's format.

    Args:
        exporter: of ``host.exporter(name)``.
        out: a folder or file that is not there, or is empty; written beside and renamed.
        options: among those that the exporter declares.

    Returns:
        The exporter's report, with a note for each parent that is not among the patches.

    Raises:
        InputError: patches of different bases, an unknown option, an ``out`` that is in the way; nothing was written.
        KeditError: the format cannot say what a patch does, or the files cannot be written.
    """
    patches = tuple(patches)
    notes = _together(patches)
    if unknown := sorted((options or {}).keys() - exporter.options.keys()):
        known = f"it has {', '.join(exporter.options)}" if exporter.options else "it has none"
        raise InputError(f"{exporter.name} has no option {unknown[0]!r}; {known}")
    with _beside(Path(out), exporter.writes) as place:
        try:
            report = exporter.export(patches, place, **(options or {}))
        except KeditError:
            raise
        except OSError as error:
            raise KeditError(f"{out} could not be written: {error.strerror or error}") from error
        except Exception as error:  # what a plugin raises by mistake, as one sentence with its cause attached
            raise KeditError(
                f"exporter {exporter.name!r} failed with {type(error).__name__} ({error}); tell who provides it"
            ) from error
        if not isinstance(report, ExportReport):
            raise KeditError(f"exporter {exporter.name!r} returned {type(report).__name__}, not ExportReport")
    return evolve(report, notes=(*notes, *report.notes))


def _together(patches: Sequence[EditPatch]) -> list[str]:
    """What is to be said of patches that are exported together; InputError when they cannot be."""
    if not patches:
        raise InputError("there is nothing to export; give at least one patch")
    ids = [patch.id for patch in patches]
    if len(set(ids)) != len(ids):
        raise InputError("a patch is on a stack once; give each patch once")
    for first, second in combinations(patches, 2):
        _same_base(first, second)
    missing = dict.fromkeys((p.id, parent) for p in patches for parent in p.parents if parent not in ids)
    return [
        f"patch {child[:12]} was made on top of patch {parent[:12]}, which is not exported with it: serve the result "
        "on a model that has that one"
        for child, parent in missing
    ]


def _same_base(first: EditPatch, second: EditPatch) -> None:
    a, b = first.base, second.base
    pair = f"patches {first.id[:12]} and {second.id[:12]}"
    if a.architecture != b.architecture:
        raise InputError(f"{pair} are for {a.architecture} and {b.architecture}; export them one by one")
    if a.name is not None and b.name is not None and a.name != b.name:
        raise InputError(f"{pair} are for {a.name} and {b.name}; export them one by one")
    for place in a.tensors.keys() & b.tensors.keys():
        one, other = a.tensors[place], b.tensors[place]
        differ = any(other.sha256.get(dtype, digest) != digest for dtype, digest in one.sha256.items())
        if differ or (one.shape, one.layout) != (other.shape, other.layout):
            raise InputError(f"{pair} were made for different values of {place!r}; export them one by one")


@contextmanager
def _beside(out: Path, kind: str) -> Iterator[Path]:
    """A new path beside ``out`` that takes its place when the block ends well; InputError when something is there."""
    if not out.parent.is_dir():
        raise InputError(f"{out} cannot be written, for the folder {out.parent} does not exist; make it first")
    _check_free(out, kind)
    place = out.parent / f".kedit-{secrets.token_hex(8)}.tmp"
    try:
        if kind == "folder":
            place.mkdir()
        yield place
        _check_free(out, kind)
        if out.is_dir():
            out.rmdir()
        place.replace(out)
    except OSError as error:
        raise KeditError(f"{out} could not be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def _check_free(out: Path, kind: str) -> None:
    if kind == "folder" and out.is_dir() and not any(out.iterdir()):
        return
    if kind == "file" and out.is_file() and out.stat().st_size == 0:
        return
    if out.is_symlink() or out.exists():
        raise InputError(f"{out} is there already and is not an empty {kind}; give another name, or remove it")
