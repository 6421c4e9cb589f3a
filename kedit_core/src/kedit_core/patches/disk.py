"""Patches on model folders: ``apply_to_folder`` and ``revert_folder`` stream the weight files and load no model.

A weight is computed as on a live model in the merged way, in the dtype the file stores it in, so loading the written
folder gives bit for bit what applying the patches to the loaded folder gives. (Where a parameter is loaded in another
dtype than it is stored in, the file's dtype wins: where config.json states another, or a model class keeps a parameter
in float32 whatever the file says.) Memory: one parameter in float32, and one delta of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from attrs import evolve, frozen
from torch import Tensor

from kedit_core.errors import BaseMismatchError, InputError, StackOrderError
from kedit_core.patches._checkpoint import Checkpoint, Names
from kedit_core.patches._record import FOLDER, History, originals
from kedit_core.patches._rewriting import FolderChange, Rewrite
from kedit_core.patches._shards import FLOAT_DTYPES
from kedit_core.patches.baseline import check_requirements
from kedit_core.patches.digests import digests_in, dtype_name, tensor_digest
from kedit_core.patches.entries import check_order
from kedit_core.patches.format import Base, BaseTensor, EditPatch
from kedit_core.patches.operations import ModuleOperation, RouterOperation

if TYPE_CHECKING:
    from kedit_core.editing.progress import Progress

__all__ = ["FolderBase", "FolderChange", "TensorCheck", "apply_to_folder", "revert_folder"]


@frozen(kw_only=True)
class TensorCheck:
    """One parameter of a folder held against what a patch was made for; ``problem`` is None when they agree."""

    place: str
    dtype: str | None
    problem: str | None


@frozen
class FolderBase:
    """The untouched parameters of a model folder, read one at a time; of an edited folder, those before the edits."""

    checkpoint: Checkpoint
    history: History | None
    names: Names

    @classmethod
    def open(cls, folder: str | os.PathLike[str], architecture: str | None = None) -> FolderBase:
        """Read config, headers and (of an edited folder) the record.

        Args:
            architecture: class name of the model whose parameters are asked for, as in a patch's ``base``; by default
                the one that kedit loads the folder with.

        Raises:
            InputError: no model folder, or one that cannot be edited on disk.
            BaseMismatchError: the folder holds another architecture.
            StackDisturbedError: an edited folder that is not as kedit left it.
        """
        checkpoint = Checkpoint.open(Path(folder))
        return cls(checkpoint, History.of(checkpoint), Names.of(checkpoint, architecture))

    @property
    def patches(self) -> tuple[EditPatch, ...]:
        """The patches on the folder, in stack order."""
        return () if self.history is None else self.history.patches

    def stored(self, place: str) -> tuple[str, ...]:
        """Names under which the files store a parameter, more than one when it is tied and stored twice.

        Raises:
            BaseMismatchError: the folder does not hold it.
            InputError: it holds it in a form that cannot be edited on disk.
        """
        keys = self.names.stored(place, self.checkpoint)
        if (dtype := self.checkpoint.entry(keys[0]).dtype) not in FLOAT_DTYPES:
            raise InputError(
                f"{self.checkpoint.folder} stores {place} as {dtype}; only {', '.join(FLOAT_DTYPES)} can be edited"
            )
        return keys

    def tensor(self, place: str) -> Tensor:
        """A parameter before any edit, in the shape, layout and dtype it is stored in; errors as :meth:`stored`."""
        return originals(self.checkpoint, self.history, key := self.stored(place)[0]).tensor(key)

    def digest(self, place: str) -> str:
        """SHA-256 of a parameter before any edit, in the dtype it is stored in; errors as :meth:`stored`."""
        return tensor_digest(self.tensor(place))

    def misfit(self, place: str, expected: BaseTensor) -> str | None:
        """Why operations for ``expected`` cannot be put on a parameter at all, or None."""
        if (shape := self.names.shapes[place]) != expected.shape:
            return f"shape {list(shape)}, not {list(expected.shape)}"
        if ((layout := self.names.layouts[place]) == "in_out") != (expected.layout == "in_out"):
            return f"layout {layout}, not {expected.layout}"
        return None

    def _other_ties(self, place: str, expected: BaseTensor) -> str | None:
        aliases = set(self.names.tied(place, self.checkpoint)) - {place}
        if aliases == set(expected.aliases):
            return None
        return f"tied to {sorted(aliases) or 'nothing'}, not {sorted(expected.aliases) or 'to nothing'}"

    def compare(self, base: Base) -> Iterator[TensorCheck]:
        """Hold every parameter that a patch was made for against this folder, one at a time."""
        for place, expected in base.tensors.items():
            try:
                tensor = self.tensor(place)
            except (BaseMismatchError, InputError) as error:
                yield TensorCheck(place=place, dtype=None, problem=str(error))
                continue
            name = dtype_name(tensor.dtype)
            problem = (
                self.misfit(place, expected)
                or self._other_ties(place, expected)
                or _digest_problem(tensor, expected.sha256)
            )
            yield TensorCheck(place=place, dtype=name, problem=problem)


def _digest_problem(tensor: Tensor, recorded: Mapping[str, str]) -> str | None:
    dtype = tensor.dtype
    if dtype == torch.float64 and "float64" not in recorded:
        dtype = torch.float32
    if (expected := recorded.get(dtype_name(dtype))) is None:
        return f"the patch records no digest in {dtype_name(dtype)}"
    found = digests_in(tensor, (dtype,))[dtype_name(dtype)]
    return None if found == expected else f"digest {found[:12]}, not {expected[:12]}"


def apply_to_folder(
    base_folder: str | os.PathLike[str],
    patch: EditPatch,
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
    _weights_only(patch)
    check_requirements(patch.requires, resources or {})
    base = FolderBase.open(base_folder, None if force else patch.base.architecture)
    target = _target(base.checkpoint, base.history, Path(out), overwrite)
    check_order(patch, [each.id for each in base.patches])
    stack = [*_stack(base.history), (patch, force)]
    rewrite = Rewrite(base.checkpoint, base.history, stack, _places(base, stack))
    if not force:
        _check_base(patch, base)
    return evolve(rewrite.write(target, progress), rounded_to=_narrower(base, patch.places))


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


def _weights_only(patch: EditPatch) -> None:
    others = [operation for operation in patch.operations if isinstance(operation, ModuleOperation | RouterOperation)]
    if others:
        named = ", ".join(dict.fromkeys(f"{operation.type} {operation.kind}" for operation in others))
        raise InputError(
            f"the patch has operations that run beside the weights ({named}), which a folder cannot hold; apply it to "
            "the loaded model instead"
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
        raise InputError(f"{out} exists already; choose another place, or allow it to be overwritten")
    return target
