"""What the commands of ``kedit stack`` share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import click
from attrs import evolve, frozen

from kedit_core.cli.common import note, progress
from kedit_core.cli.groups import catalogue
from kedit_core.cli.model_options import read_patches
from kedit_core.contract import WAYS, Way
from kedit_core.errors import InputError
from kedit_core.files import replacing

if TYPE_CHECKING:
    from kedit_core.folders.base import FolderBase
    from kedit_core.patches import EditPatch
    from kedit_core.stacks.file import StackedPatch, StackFile

_TOLD = 10  # pairs that meet
STACK_FILE = click.Path(dir_okay=False, path_type=Path)


@frozen
class Given:
    """A patch named on the command line, read, and how it is to stand in a stack file.

    Attributes:
        elsewhere: its file, when that lies outside of the stack file's folder and is to be copied beside it.
    """

    patch: EditPatch
    entry: StackedPatch
    elsewhere: Path | None


def way_of(text: str) -> tuple[Path, Way | None]:
    """File and way of ``PATCH[:WAY]``."""
    path, colon, way = text.rpartition(":")
    if colon and way not in WAYS and Path(path).is_file() and not Path(text).exists():
        raise InputError(f"{way!r} behind {path} is no way to put a patch on; take {' or '.join(WAYS)}")
    return (Path(path), way) if colon and path and way in WAYS else (Path(text), None)


def read_given(
    file: Path, way: Way | None, folder: Path, source: str | None = None, keys: Sequence[Path] = ()
) -> Given:
    """A patch, and its entry in a stack file of ``folder``: where it lies if that is below, else a copy beside it."""
    from kedit_core.editing.stacks import PATCH_FOLDER
    from kedit_core.stacks.file import StackedPatch

    (loaded,) = read_patches([file], keys)
    here, home = file.parent.resolve() / file.name, folder.resolve()
    inside = here.is_relative_to(home)  # a link that lies below stays one
    name = here.relative_to(home).as_posix() if inside else f"{PATCH_FOLDER}/{loaded.id}.safetensors"
    entry = StackedPatch(id=loaded.id, file=name, way=way or "merged", source=source)
    return Given(loaded, entry, None if inside else file)


def keep(given: Given, file: Path) -> None:
    """Copy a patch that lies elsewhere, and its signature with it, to where the stack has it."""
    from kedit_core.editing.stacks import keep_patch
    from kedit_core.patches.trust import read_signature, signature_path

    if given.elsewhere is None:
        return
    keep_patch(given.patch, file)
    if (signature := read_signature(given.elsewhere, None)) is not None:
        with replacing(signature_path(file)) as stream:
            stream.write(signature)


def open_base(ctx: click.Context, stack: StackFile) -> FolderBase:
    """The stack's base as it is on disk; errors of resolve_model and FolderBase.open."""
    from kedit_core.editing.sources import resolve_model
    from kedit_core.folders.base import FolderBase
    from kedit_core.plugins import Host

    source = resolve_model(stack.model, Host(catalogue(ctx)), stack.revision)
    return FolderBase.open(source.folder, present=True)


def locked_on_disk(
    ctx: click.Context, stack: StackFile, patches: Sequence[EditPatch], dtype: str | None = None
) -> StackFile:
    """The stack with its digest, found from the base's files, after its patches were checked to fit them.

    A base whose weights are not in files as the model has them gives a stack without digest, and a note.

    Raises BaseMismatchError when a patch is for another base.
    """
    from kedit_core.editing.sources import resolve_model
    from kedit_core.plugins import Host
    from kedit_core.stacks.digest import Fit, arithmetic, folder_digest, stored_dtype

    resolve_model(stack.model, Host(catalogue(ctx)), stack.revision)  # what is not there is an error, not a note
    stack = evolve(stack, dtype=dtype or stack.dtype, weights_sha256=None, arithmetic=None)
    try:
        base = open_base(ctx, stack)
        chosen = stack.dtype or stored_dtype(base)
        fit = Fit(base)
        for patch in patches:
            fit.check(patch)
        ways = [(patch, each.way) for patch, each in zip(patches, stack.patches, strict=True)]
        digest = folder_digest(base, ways, chosen, progress)
    except InputError as error:
        note(f"note: no digest of the weights is recorded ({error}); `kedit stack lock --load` records it")
        return stack
    return evolve(stack, dtype=chosen, weights_sha256=digest, arithmetic=arithmetic() if digest else None)


def tell_conflicts(stack: StackFile, patches: Sequence[EditPatch], fresh: Sequence[str] | None = None) -> None:
    """Tell on stderr where patches of a stack meet; only pairs with one of the ids ``fresh``, when given."""
    from kedit_core.comparing.conflicting import conflicts

    names = dict(zip((patch.id for patch in patches), called(stack), strict=True))
    told: dict[str, None] = {}
    if fresh is None:
        groups = [patches] if len(patches) > 1 else []
    else:
        groups = [pair for pair in combinations(patches, 2) if not {pair[0].id, pair[1].id}.isdisjoint(fresh)]
    for group in groups:
        found = conflicts(group, names=[names[patch.id] for patch in group], quick=True)
        told |= dict.fromkeys((*found.warnings, *found.notes))
    for each in list(told)[:_TOLD]:
        note(f"note: {each}")
    if len(told) > _TOLD:
        note(f"note: and {len(told) - _TOLD} more; `kedit patch conflicts` tells all")


def called(stack: StackFile) -> list[str]:
    """What to call a stack's patches: the names of their files, or their ids where these are long or the same."""
    names = [Path(each.file).name for each in stack.patches]
    clear = len(set(names)) == len(names)
    return [
        name if clear and name != f"{each.id}.safetensors" else each.id[:12]
        for name, each in zip(names, stack.patches, strict=True)
    ]


def check_names_a_stack(option: str, path: Path) -> None:
    """InputError for a file name by which no command would know a stack file."""
    from kedit_core.stacks.faults import ENDINGS

    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"{option} {path} does not end in {' or '.join(ENDINGS)}; name it stack.yaml, say")
