"""Stack files on an Editor's model: all of their patches or none, and the weights held against the recorded digest."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from kedit_core.contract import Installed
from kedit_core.editing.rounds import undone_on_failure
from kedit_core.errors import BaseMismatchError, InputError, KeditError, StackOrderError
from kedit_core.patches import EditPatch
from kedit_core.patches.digests import dtype_name
from kedit_core.patches.places import find_place
from kedit_core.patches.trust import ANYONE
from kedit_core.stacks.digest import arithmetic, other_weights, touched
from kedit_core.stacks.file import StackedPatch, StackFile, base_reference

if TYPE_CHECKING:
    from kedit_core.editing.editor import Editor

PATCH_FOLDER = "patches"


def chosen_dtype(stack: StackFile, dtype: Any) -> Any:
    """The dtype to load the base in: what the user asks for, else what the stack says.

    Raises InputError when the stack's digest was recorded in another one.
    """
    if dtype is None:
        return stack.dtype
    asked = dtype if isinstance(dtype, str) else dtype_name(dtype)
    if stack.weights_sha256 is not None and asked != stack.dtype:
        raise InputError(
            f"the stack's weights are recorded in {stack.dtype} and {asked} is asked for; leave the dtype out, or "
            f"record them anew with `kedit stack lock --dtype {asked}`"
        )
    return dtype


def put_on(
    editor: Editor,
    stack: StackFile,
    patches: Sequence[EditPatch],
    *,
    force: bool = False,
    allow_unverified: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> tuple[Installed, ...]:
    """Put a stack's patches (as ``stack.read()`` gave them) on a model without patches, or leave it as it was found.

    See :meth:`Editor.from_stack` for arguments and errors.
    """
    if editor.stack.patches:
        raise StackOrderError("the model has patches on it, and a stack file begins at the base; restore() it first")
    with undone_on_failure(editor.stack):
        installed = tuple(
            editor.apply(patch, way=each.way, force=force, allow_unverified=allow_unverified)
            for each, patch in zip(stack.patches, patches, strict=True)
        )
        if stack.weights_sha256 is not None:
            here = _arithmetic(editor)
            problem = other_weights(stack, live_digest(editor), here)
            if problem is not None and stack.arithmetic == here and not force:
                raise BaseMismatchError(problem)
            if problem is not None and on_note is not None:
                on_note(problem)
    return installed


def live_digest(editor: Editor) -> str | None:
    """The digest that a stack file records of the model as it is; None when its patches are about no weight.

    Quantised parameters are left out.
    """
    names = touched([entry.patch for entry in editor.stack.patches])
    plain = [name for name in names if not find_place(editor.model, name).packed]
    return editor.stack.weights_digest(plain) if plain else None


def locked(editor: Editor, stack: StackFile) -> StackFile:
    """The stack with the dtype and the digest of the weights that the Editor's model has now."""
    digest = live_digest(editor)
    return evolve(
        stack,
        dtype=_dtype(editor),
        weights_sha256=digest,
        arithmetic=None if digest is None else _arithmetic(editor),
    )


def write_stack(editor: Editor, path: str | os.PathLike[str], base: str | None = None) -> StackFile:
    """Write the patches on a model as a stack file; see :meth:`Editor.save_stack`."""
    target = Path(path)
    entries = editor.stack.patches
    _check_parents([entry.patch for entry in entries])
    if base is None and editor.name is None:
        raise InputError("the model has no name that others could load it by; give base=, a name or a folder")
    named = base is None or not Path(base).expanduser().is_dir()
    stack = StackFile(
        base=str(base or editor.name) if named else base_reference(str(base), target.parent),
        revision=editor.revision if base in (None, editor.name) else None,
        patches=tuple(
            StackedPatch(id=entry.patch.id, file=f"{PATCH_FOLDER}/{entry.patch.id}.safetensors", way=entry.way)
            for entry in entries
        ),
        folder=target.parent,
    )
    stack = locked(editor, stack)
    for each, entry in zip(stack.patches, entries, strict=True):
        keep_patch(entry.patch, stack.path(each))
    stack.save(target)
    return stack


def keep_patch(patch: EditPatch, file: Path) -> None:
    """Have ``patch`` in ``file``, in a folder that is made; a file that is this patch already stays as it is."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KeditError(f"the folder {file.parent} could not be made: {error.strerror or error}") from error
    if not (file.is_file() and _is(patch, file)):
        patch.save(file)


def _is(patch: EditPatch, file: Path) -> bool:
    try:
        return EditPatch.load(file, trust=ANYONE).id == patch.id  # only told apart, not believed
    except KeditError:
        return False


def _check_parents(patches: Sequence[EditPatch]) -> None:
    """StackOrderError for a patch whose parent was taken off: nobody could put it on from the base up."""
    below: set[str] = set()
    for patch in patches:
        if missing := [parent for parent in patch.parents if parent not in below]:
            raise StackOrderError(
                f"patch {patch.id[:12]} was made on top of {missing[0][:12]}, which is no longer on the model, so a "
                "stack file could not be applied; take it off, or put its parent back below it"
            )
        below.add(patch.id)


def _dtype(editor: Editor) -> str:
    return next(dtype_name(each.dtype) for each in editor.model.parameters() if each.is_floating_point())


def _arithmetic(editor: Editor) -> str:
    return arithmetic(next(editor.model.parameters()).device)
