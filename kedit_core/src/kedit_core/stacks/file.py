"""A stack as a file: a base and the patches to be on it, in order (docs/stacks.md).

Patches stand beside the file and are named by their ids, so the file says exactly which stack it means.
What only whoever applies it can decide (to force a patch on another base, to trust weights that cannot be verified,
where an editor lies) is not in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from kedit_core.contract import Way
from kedit_core.errors import FaultsError, InputError, KeditError, StackOrderError
from kedit_core.files import open_regular, replacing
from kedit_core.patches.entries import check_order
from kedit_core.patches.format import EditPatch
from kedit_core.patches.operations import as_tuple
from kedit_core.patches.trust import Trust
from kedit_core.stacks.faults import ENDINGS, FORMAT, PATCH_FIELDS, is_folder, stack_faults
from kedit_core.stacks.text import LARGEST, read_yaml, write_yaml

HEADER = "# A stack of kedit patches: `kedit stack --help`. Comments are lost when kedit changes this file.\n"


def is_stack_file(model: object) -> bool:
    """Whether a MODEL is a stack file: a path that ends in ``.yaml`` or ``.yml``, and no folder."""
    return isinstance(model, str | Path) and str(model).lower().endswith(ENDINGS) and not Path(model).is_dir()


@frozen(kw_only=True)
class StackedPatch:
    """One patch of a stack file.

    Attributes:
        id: SHA-256 of the patch's file.
        file: where it lies, relative to the stack file: ``/`` between names, no ``..``, never absolute.
        way: how its low-rank deltas are on the model.
        source: where it can be had from, told when the file is missing; kedit fetches nothing by itself.
    """

    id: str
    file: str
    way: Way = "merged"
    source: str | None = None


@frozen(kw_only=True)
class StackFile:
    """A base and the patches on it, lowest first.

    Attributes:
        base: a registered name, a Hub id, or a folder; a folder begins with ``/``, ``./``, ``../`` or ``~``, and a
            relative one is found from the stack file's own folder.
        revision: of a Hub model.
        dtype: what the base is loaded in; None: as stored.
        patches: lowest first.
        weights_sha256: digest of the weights that the patches are about, with the stack on; see
            :mod:`kedit_core.stacks.digest`. None: not recorded.
        arithmetic: what the digest was computed with; elsewhere weights may differ by rounding.
        folder: of the file.

    Raises FaultsError when built of what no stack file may hold.
    """

    base: str
    revision: str | None = None
    dtype: str | None = None
    patches: tuple[StackedPatch, ...] = field(default=(), converter=as_tuple)
    weights_sha256: str | None = None
    arithmetic: str | None = None
    folder: Path = field(default=Path(), converter=Path, eq=False)

    def __attrs_post_init__(self) -> None:
        if faults := list(stack_faults(self.to_dict())):
            raise FaultsError("the stack", faults)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StackFile:
        """Read a stack file; the patches are not opened.

        Raises InputError when there is none, FaultsError naming all that is wrong in it. Memory: the file, 1 MiB at
        most.
        """
        source = Path(path)
        try:
            if not source.is_file():
                raise InputError(f"there is no stack file {source}; check the path")
            with open_regular(source) as stream:
                data = stream.read(LARGEST + 1)
            content = read_yaml(data)
        except OSError as error:
            raise InputError(f"{source} could not be read: {error.strerror or error}") from error
        except ValueError as error:
            raise FaultsError(str(source), [str(error)]) from None
        if faults := list(stack_faults(content)):
            raise FaultsError(str(source), faults)
        fields = {key: value for key, value in content.items() if key not in ("format", "patches")}
        patches = tuple(StackedPatch(**each) for each in content["patches"])
        return cls(**fields, patches=patches, folder=source.parent)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file in one step; the same stack gives the same bytes. Patches are not written.

        Raises InputError when the files it names would not be found from there, KeditError when it cannot be written.
        """
        target = Path(path)
        if self.patches and os.path.realpath(target.parent) != os.path.realpath(self.folder):
            raise InputError(
                f"the stack's files lie beside {self.folder}, so it cannot be written to {target}; set folder first"
            )
        text = (HEADER + write_yaml(self.to_dict())).encode()
        if len(text) > LARGEST:
            raise InputError(f"the stack takes {len(text)} bytes and a stack file has at most {LARGEST}; split it")
        try:
            with replacing(target) as stream:
                stream.write(text)
        except OSError as error:
            raise KeditError(f"the stack could not be written to {target}: {error.strerror or error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The file's content, without what is None: JSON-able."""
        fields = {
            "format": FORMAT,
            "base": self.base,
            "revision": self.revision,
            "dtype": self.dtype,
            "patches": [_without_none({key: getattr(each, key) for key in PATCH_FIELDS}) for each in self.patches],
            "weights_sha256": self.weights_sha256,
            "arithmetic": self.arithmetic,
        }
        return _without_none(fields)

    # ------------------------------------------------------------------ reading what it names

    @property
    def model(self) -> str:
        """The base as :meth:`Editor.from_pretrained` takes it, a folder as a path from here.

        Raises InputError for a Hub id that is also a folder in the current directory, which would be taken for it.
        """
        if is_folder(self.base):
            return str(self.folder / Path(self.base).expanduser())
        if ":" not in self.base and Path(self.base).is_dir():
            raise InputError(
                f"the stack's base {self.base} is a name, and there is a folder {self.base} here that would be taken "
                f"for it; run from elsewhere, or write ./ before it in the stack file if the folder is meant"
            )
        return self.base

    def path(self, patch: StackedPatch) -> Path:
        """Where a patch's file is."""
        return self.folder / patch.file

    def read_one(self, patch: StackedPatch, *, trust: Trust | None = None) -> EditPatch:
        """A patch of the stack, from its file.

        Args:
            trust: whose signature it must have; see :meth:`EditPatch.load`.

        Raises InputError when the file is missing or another patch; UntrustedPatchError, PatchFormatError.
        """
        path = self.path(patch)
        if not path.is_file():
            source = f" (it comes from {patch.source})" if patch.source else ""
            raise InputError(f"{path} is not there, the patch {patch.id[:12]} of the stack; put it there{source}")
        loaded = EditPatch.load(path, trust=trust)
        if loaded.id != patch.id:
            raise InputError(
                f"{path} is patch {loaded.id[:12]} and the stack names {patch.id[:12]} there; get the right file"
            )
        return loaded

    def read(self, *, trust: Trust | None = None) -> tuple[EditPatch, ...]:
        """All patches, lowest first; errors as :meth:`read_one`, and StackOrderError as :func:`check_stack_order`."""
        patches = tuple(self.read_one(each, trust=trust) for each in self.patches)
        check_stack_order(patches)
        return patches

    def find(self, wanted: str) -> StackedPatch:
        """The patch whose id is or begins with ``wanted``; StackOrderError when there is none, or several."""
        found = [each for each in self.patches if wanted and each.id.startswith(wanted.lower())]
        if len(found) != 1:
            there = ", ".join(each.id[:12] for each in self.patches) or "no patch"
            many = "more than one patch" if found else "no patch"
            raise StackOrderError(f"the stack has {many} whose id begins with {wanted!r}; in it are {there}")
        return found[0]

    # ------------------------------------------------------------------ changing

    def with_patch(self, patch: StackedPatch, at: int | None = None) -> StackFile:
        """The stack with one more patch, on top or as number ``at`` (1: the lowest); its digest is left out.

        Raises InputError for a number beyond the stack, FaultsError for a patch that is in it.
        """
        count = len(self.patches)
        place = count if at is None else at - 1
        if not 0 <= place <= count:
            raise InputError(f"there is no place {at} in a stack of {count}; give a number from 1 to {count + 1}")
        patches = (*self.patches[:place], patch, *self.patches[place:])
        return evolve(self, patches=patches, weights_sha256=None, arithmetic=None)

    def without(self, ids: Sequence[str]) -> StackFile:
        """The stack without some patches (ids, or beginnings of them); its digest is left out. Errors: :meth:`find`."""
        gone = {self.find(each).id for each in ids}
        kept = [each for each in self.patches if each.id not in gone]
        return evolve(self, patches=kept, weights_sha256=None, arithmetic=None)


def check_stack_order(patches: Sequence[EditPatch]) -> None:
    """StackOrderError unless the patches can be put on one after the other: parents below, in their order."""
    on: list[str] = []
    for patch in patches:
        check_order(patch, on)
        on.append(patch.id)


def base_reference(model: str, folder: Path) -> str:
    """How a stack file in ``folder`` names a model folder that is ``model`` here; an absolute one stays as it is."""
    if model.startswith(("/", "~")):
        return model
    relative = Path(os.path.relpath(model, folder)).as_posix()
    return relative if relative.startswith("..") else f"./{relative}"


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}
