"""``kedit stack new``, ``add``, ``remove`` and ``lock``: writing stack files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from attrs import evolve

from kedit_core.cli.common import emit, json_option, note, progress, say
from kedit_core.cli.groups import catalogue
from kedit_core.cli.model_options import keys_option, roles
from kedit_core.cli.outputs import OutputPath, check_file
from kedit_core.cli.stack_files import (
    STACK_FILE,
    Given,
    check_names_a_stack,
    keep,
    locked_on_disk,
    read_given,
    tell_conflicts,
    way_of,
)
from kedit_core.contract import WAYS, Way
from kedit_core.errors import InputError

if TYPE_CHECKING:
    from kedit_core.patches import EditPatch
    from kedit_core.stacks.file import StackFile

_DTYPES = ("float32", "bfloat16", "float16", "float64")

_no_lock = click.option(
    "--no-lock", is_flag=True, help="Do not read the base: no check that patches fit it, and no digest."
)


@click.command(short_help="Write a stack file for a model and patches.")
@click.argument("base", metavar="MODEL")
@click.argument("given", metavar="[PATCH[:WAY]]...", nargs=-1)
@click.option(
    "-o", "--output", required=True, type=OutputPath(dir_okay=False, path_type=Path), help="File to write: stack.yaml."
)
@click.option("--dtype", type=click.Choice(_DTYPES), help="Load the base in this dtype (as stored, unless given).")
@click.option("--revision", help="Revision of a model from the Hugging Face Hub.")
@keys_option
@_no_lock
@json_option
@click.pass_context
def new(
    ctx: click.Context,
    base: str,
    given: tuple[str, ...],
    output: Path,
    dtype: str | None,
    revision: str | None,
    keys: tuple[Path, ...],
    no_lock: bool,
    json_to: str | None,
) -> None:
    """Write a stack file: MODEL, and patches to be on it, the lowest first.

    WAY is merged (into the weight, unless given) or attached (beside it). Patches that lie outside of the file's
    folder are copied into `patches` beside it.

    \b
    kedit stack new factworld:llama oslo.safetensors bergen.safetensors:attached -o stack.yaml
    """
    from kedit_core.editing.sources import resolve_model
    from kedit_core.plugins import Host
    from kedit_core.stacks.file import StackFile, base_reference

    check_names_a_stack("-o", output)
    check_file("-o", output, "stack.yaml")
    if output.exists() and output.stat().st_size:
        raise InputError(f"-o {output} is there already; change it with `kedit stack add`, or remove it first")
    folder = output.parent
    patches = [read_given(*way_of(text), folder, keys=keys) for text in given]
    source = resolve_model(base, Host(catalogue(ctx)), revision)
    stack = StackFile(
        base=source.name or base_reference(base, folder),
        revision=source.revision,
        dtype=dtype,
        patches=[each.entry for each in patches],
        folder=folder,
    )
    _write(ctx, output, stack, [each.patch for each in patches], patches, no_lock, json_to)


@click.command(short_help="Put one more patch into a stack file.")
@click.argument("file", metavar="STACK", type=STACK_FILE)
@click.argument("given", metavar="PATCH[:WAY]")
@click.option("--way", type=click.Choice(WAYS), help="How its low-rank deltas are on the model [default: merged].")
@click.option("--at", type=click.IntRange(min=1), metavar="N", help="Its number in the stack, 1 the lowest (on top).")
@click.option("--source", help="Where others can get it: kept in the file, and told when the patch is missing.")
@keys_option
@_no_lock
@json_option
@click.pass_context
def add(
    ctx: click.Context,
    file: Path,
    given: str,
    way: Way | None,
    at: int | None,
    source: str | None,
    keys: tuple[Path, ...],
    no_lock: bool,
    json_to: str | None,
) -> None:
    """Put PATCH into STACK, on top unless --at says where. Comments in the file are lost."""
    from kedit_core.patches.trust import policy_for
    from kedit_core.stacks.file import StackFile

    path, of_text = way_of(given)
    if way is not None and of_text is not None and way != of_text:
        raise InputError(f"{given} and --way {way} name two ways; give one of them")
    before, trust = StackFile.load(file), policy_for(keys)
    one = read_given(path, way or of_text, file.parent, source, keys)
    stack = before.with_patch(one.entry, at)
    patches = [one.patch if each.id == one.patch.id else stack.read_one(each, trust=trust) for each in stack.patches]
    _write(ctx, file, stack, patches, [one], no_lock, json_to)


@click.command(short_help="Take patches out of a stack file.")
@click.argument("file", metavar="STACK", type=STACK_FILE)
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@_no_lock
@json_option
@click.pass_context
def remove(ctx: click.Context, file: Path, ids: tuple[str, ...], no_lock: bool, json_to: str | None) -> None:
    """Take patches out of STACK, by their ids or how these begin; the patch files stay where they are.

    A patch that others in the stack were made on top of is only taken out together with these.
    """
    from kedit_core.stacks.file import StackFile

    stack = StackFile.load(file).without(ids)
    _write(ctx, file, stack, [stack.read_one(each) for each in stack.patches], (), no_lock, json_to)


@click.command(short_help="Record which weights the stack gives.")
@click.argument("file", metavar="STACK", type=STACK_FILE)
@click.option("--dtype", type=click.Choice(_DTYPES), help="For the base in this dtype [default: what STACK says].")
@click.option("--load", is_flag=True, help="Load the model for it: where its weights cannot be read from files.")
@click.option("--with", "given", multiple=True, metavar="ROLE=PATH", help="What the patches need; only with --load.")
@json_option
@click.pass_context
def lock(
    ctx: click.Context, file: Path, dtype: str | None, load: bool, given: tuple[str, ...], json_to: str | None
) -> None:
    """Compute the digest of the weights with STACK on, and write it into the file.

    It holds for this torch on this kind of processor: elsewhere sums may round otherwise.
    """
    from kedit_core.stacks.file import StackFile

    resources = roles(given)
    stack = StackFile.load(file)
    if not load:
        _write(ctx, file, evolve(stack, dtype=dtype or stack.dtype), stack.read(), (), False, json_to)
        return
    from kedit_core.editing import Editor
    from kedit_core.editing.stacks import locked

    unlocked = evolve(stack, dtype=dtype or stack.dtype, weights_sha256=None, arithmetic=None)
    unlocked.read()
    editor = Editor.from_pretrained(
        stack.model, dtype=unlocked.dtype, revision=stack.revision, resources=resources, progress=progress
    )
    editor.apply_stack(unlocked)
    done = locked(editor, unlocked)
    done.save(file)
    _tell(file, done, json_to)


def _write(
    ctx: click.Context,
    path: Path,
    stack: StackFile,
    patches: Sequence[EditPatch],
    given: Sequence[Given],
    no_lock: bool,
    json_to: str | None,
) -> None:
    """Check the whole stack, then write what is new beside the file and the file itself."""
    from kedit_core.stacks.file import check_stack_order

    check_stack_order(patches)
    if not no_lock:
        stack = locked_on_disk(ctx, stack, patches)
    tell_conflicts(stack, patches, [each.patch.id for each in given])
    lost = _comments(path)
    for each in given:
        keep(each, stack.path(each.entry))
    stack.save(path)
    if lost:
        note(f"note: {path} had comments, which are lost")
    _tell(path, stack, json_to)


def _comments(path: Path) -> bool:
    """Whether a stack file has comments that kedit did not write."""
    from kedit_core.stacks.file import HEADER

    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace").removeprefix(HEADER)
    return any(line.lstrip().startswith("#") or " #" in line for line in text.splitlines())


def _tell(path: Path, stack: StackFile, json_to: str | None) -> None:
    def show() -> None:
        count = len(stack.patches)
        say(f"Wrote {path}: {count} patch{'es' * (count != 1)} on {stack.base}")
        if stack.weights_sha256 is not None:
            say(f"  weights {stack.weights_sha256} ({stack.dtype})")

    emit(json_to, lambda: {"stack": str(path), **stack.to_dict()}, show)
