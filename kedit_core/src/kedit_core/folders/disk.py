"""Patches on model folders: ``apply_to_folder`` and ``revert_folder`` stream the weight files and load no model.

A weight is computed as on a live model in the merged way, in the dtype the file stores it in, so loading the written
folder gives bit for bit what applying the patches to the loaded folder gives. (Where a parameter is loaded in another
dtype than it is stored in, the file's dtype wins: where config.json states another, or a model class keeps a parameter
in float32 whatever the file says.) Memory: one parameter in float32, and one delta of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve

from kedit_core.errors import BaseMismatchError, InputError, StackOrderError
from kedit_core.folders._checkpoint import Checkpoint
from kedit_core.folders._record import FOLDER, History
from kedit_core.folders._rewriting import FolderChange, Rewrite
from kedit_core.folders._shards import FLOAT_DTYPES
from kedit_core.folders.base import FolderBase, TensorCheck
from kedit_core.patches.baseline import check_requirements
from kedit_core.patches.digests import dtype_name
from kedit_core.patches.entries import check_order
from kedit_core.patches.format import EditPatch
from kedit_core.patches.operations import ModuleOperation, RouterOperation

if TYPE_CHECKING:
    from kedit_core.editing.progress import Progress

__all__ = ["FolderBase", "FolderChange", "TensorCheck", "apply_to_folder", "revert_folder"]


def apply_to_folder(
    base_folder: str | os.PathLike[str],
    patch: EditPatch | Sequence[EditPatch],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    resources: Mapping[str, Path] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FolderChange:
    """Write ``base_folder`` with ``patch`` on it to ``out``; on a folder that holds patches already, on top of them.

    Nothing in ``base_folder`` is changed unless ``out`` is that folder, which only an edited folder may be; it is then
    replaced in one step. ``out`` also gets every other file of the folder, and ``.kedit`` with what reverting needs.

    Args:
        patch: one, or several, lowest first; all are put on in one pass, or none.
        force: put it on although model or weights are not those it was made for (shapes must fit all the same).
        resources: role -> local path of what the patch requires.
        overwrite: replace an edited folder that is at ``out``.
        progress: called as ``progress(text, total=bytes)``; see kedit_core.editing.progress.

    Raises:
        InputError: a folder or patch that cannot be edited on disk, or an unsuitable ``out``.
        BaseMismatchError: the original weights are not those the patch was made for.
        StackOrderError: it is on the folder already, or its parents are not.
        StackDisturbedError: an edited folder is not as kedit left it.
        RequirementError: something it needs is missing or is another one.
        KeditError: not enough room.
    """
    patches = (patch,) if isinstance(patch, EditPatch) else tuple(patch)
    if not patches:
        raise InputError("no patch was given to put on the folder; give at least one")
    for each in patches:
        weights_only(each)
        check_requirements(each.requires, resources or {})
    base = FolderBase.open(base_folder, None if force else patches[0].base.architecture)
    target = _target(base.checkpoint, base.history, Path(out), overwrite)
    on = [each.id for each in base.patches]
    for each in patches:
        check_order(each, on)
        on.append(each.id)
    stack = [*_stack(base.history), *((each, force) for each in patches)]
    rewrite = Rewrite(base.checkpoint, base.history, stack, _places(base, stack))
    if not force:
        for each in patches:
            _check_base(each, base)
    places = [place for each in patches for place in each.places]
    return evolve(rewrite.write(target, progress), rounded_to=_narrower(base, places))


def revert_folder(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    patch_id: str | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FolderChange:
    """Write an edited folder to ``out`` without one of its patches, or without any.

    What no remaining patch touches is byte-identical to the original; without any patch left every weight file is, and
    there is no ``.kedit``. Patches whose parent was taken away stay and are named in ``orphans``.

    Args:
        patch_id: id, or the beginning of one; None for all.

    Raises:
        InputError: not an edited folder, or an unsuitable ``out``.
        StackOrderError: no such patch on it.
        StackDisturbedError: it is not as kedit left it.
        KeditError: not enough room.
    """
    checkpoint = Checkpoint.open(Path(folder))
    history = History.of(checkpoint)
    if history is None:
        raise InputError(f"{folder} has no {FOLDER} folder, so kedit has not edited it; there is nothing to revert")
    target = _target(checkpoint, history, Path(out), overwrite)
    gone = None if patch_id is None else _chosen(patch_id, history, checkpoint.folder)
    stack = [(patch, forced) for patch, forced in _stack(history) if gone is not None and patch.id != gone]
    places = {place for patch, _ in stack for place in patch.places}
    place_of = {key: tensor.place for key, tensor in history.record.tensors.items() if tensor.place in places}
    return Rewrite(checkpoint, history, stack, place_of).write(target, progress)


def _narrower(base: FolderBase, places: Sequence[str]) -> str | None:
    """The stored dtype of the first of these places that config.json has the model loaded in another than."""
    loaded = base.checkpoint.config.get("dtype") or base.checkpoint.config.get("torch_dtype")
    stored = (dtype_name(FLOAT_DTYPES[base.checkpoint.entry(base.stored(place)[0]).dtype]) for place in places)
    return next((dtype for dtype in stored if loaded is not None and dtype != loaded), None)


def _stack(history: History | None) -> list[tuple[EditPatch, bool]]:
    if history is None:
        return []
    return [(patch, each.forced) for patch, each in zip(history.patches, history.record.patches, strict=True)]


def _places(base: FolderBase, stack: Sequence[tuple[EditPatch, bool]]) -> dict[str, str]:
    """Stored tensor -> the parameter it is, for all that the patches change; BaseMismatchError when one cannot fit."""
    for patch, _ in stack:
        for place in patch.places:
            base.stored(place)
            if (problem := base.misfit(place, patch.base.tensors[place])) is not None:
                raise _mismatch(place, base, problem)
    place_of: dict[str, str] = {}
    for place in dict.fromkeys(place for patch, _ in stack for place in patch.places):
        for key in base.stored(place):
            if place_of.setdefault(key, place) != place:
                raise InputError(
                    f"{place_of[key]} and {place} are one tied parameter in {base.checkpoint.folder}, and the patches "
                    "name it differently; compute one of them anew"
                )
    return place_of


def _check_base(patch: EditPatch, base: FolderBase) -> None:
    for check in base.compare(patch.base):
        if check.problem is not None:
            raise _mismatch(check.place, base, f"{check.problem}", " or force it")


def _mismatch(place: str, base: FolderBase, problem: str, otherwise: str = "") -> BaseMismatchError:
    return BaseMismatchError(
        f"{place} in {base.checkpoint.folder} is not what the patch was made for ({problem}); nothing was written, so "
        f"take the right base{otherwise}"
    )


def weights_only(patch: EditPatch) -> None:
    """InputError for a patch that changes more than weights."""
    others = [operation for operation in patch.operations if isinstance(operation, ModuleOperation | RouterOperation)]
    if others:
        named = ", ".join(dict.fromkeys(f"{operation.type} {operation.kind}" for operation in others))
        raise InputError(
            f"patch {patch.id[:12]} has operations that run beside the weights ({named}), which a folder cannot hold; "
            "put it on the loaded model instead (`kedit generate MODEL --patch FILE`, or Editor.apply)"
        )


def _chosen(patch_id: str, history: History, folder: Path) -> str:
    ids = [patch.id for patch in history.patches]
    found = [each for each in ids if patch_id and each.startswith(patch_id)]
    if len(found) != 1:
        what = "more than one patch" if found else "no patch"
        there = ", ".join(each[:12] for each in ids)
        raise StackOrderError(f"{folder} has {what} whose id begins with {patch_id!r}; on it are {there}")
    return found[0]


def _target(checkpoint: Checkpoint, history: History | None, out: Path, overwrite: bool) -> Path:
    """Where the folder will be, links resolved; InputError when something is in the way."""
    source, target = checkpoint.folder.resolve(), out.expanduser().resolve()
    if target == source:
        if history is None:
            raise InputError(f"{out} is the base folder, which kedit never writes into; choose another for the result")
        return target
    if target in source.parents or source in target.parents:
        raise InputError(f"{out} and {checkpoint.folder} lie within one another; choose a folder outside of it")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    if not (target / FOLDER).is_dir():
        raise InputError(f"{out} exists and is not a folder that kedit wrote; choose another place or remove it")
    if not overwrite:
        raise InputError(f"{out} exists already; choose another place, or allow it to be overwritten (--overwrite)")
    return target
