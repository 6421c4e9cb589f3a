"""``kedit stack show`` and ``kedit stack verify``: what a stack file says, and whether it holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, json_option, note, one_line, progress, say, show_table
from kedit_core.cli.model_options import keys_option
from kedit_core.cli.stack_files import STACK_FILE, open_base, tell_conflicts
from kedit_core.errors import KeditError, StackOrderError

if TYPE_CHECKING:
    from kedit_core.patches import EditPatch
    from kedit_core.stacks.file import StackedPatch, StackFile

_SHOWN = 2  # facts of a patch in the table


@click.command(short_help="Tell what is in a stack file.")
@click.argument("file", metavar="STACK", type=STACK_FILE)
@json_option
def show(file: Path, json_to: str | None) -> None:
    """Tell what is in STACK: the base, and the patches from the lowest to the highest."""
    from kedit_core.stacks.file import StackFile

    stack = StackFile.load(file)
    rows = [_described(stack, each) for each in stack.patches]
    data = {"stack": str(file), **stack.to_dict(), "patches": rows}

    def text() -> None:
        say(f"{stack.base}{f' at {stack.revision}' if stack.revision else ''}, {stack.dtype or 'dtype as stored'}")
        cells = [
            (str(number), row["id"][:12], row["way"], row["method"] or "", row["problem"] or "\n".join(row["facts"]))
            for number, row in enumerate(rows, 1)
        ]
        if cells:
            show_table(("", "patch", "way", "method", "facts"), cells)
        say(f"weights {stack.weights_sha256}" if stack.weights_sha256 else "The weights are not recorded.")

    emit(json_to, lambda: data, text)


def _described(stack: StackFile, entry: StackedPatch) -> dict[str, Any]:
    row: dict[str, Any] = {"id": entry.id, "file": entry.file, "way": entry.way, "source": entry.source}
    try:
        patch = stack.read_one(entry)
    except KeditError as error:
        return {**row, "method": None, "parents": [], "facts": [], "problem": str(error)}
    return {**row, "method": patch.method.name, "parents": list(patch.parents), "facts": _facts(patch), "problem": None}


def _facts(patch: EditPatch) -> list[str]:
    from kedit_core.patches import PrivateRequests

    if isinstance(patch.requests, PrivateRequests):
        return [f"{patch.requests.count} private"]
    told = [one_line(f"{fact['prompt']} -> {fact['target_new']}") for fact in patch.requests[:_SHOWN]]
    return [*told, f"and {len(patch.requests) - _SHOWN} more"] if len(patch.requests) > _SHOWN else told


@click.command(short_help="Check files, base, order and weights of a stack.")
@click.argument("file", metavar="STACK", type=STACK_FILE)
@keys_option
@json_option
@click.pass_context
def verify(ctx: click.Context, file: Path, keys: tuple[Path, ...], json_to: str | None) -> None:
    """Check STACK: that each patch is the one it names, fits the base and stands above its parents, and that the
    weights are those it records. The base is streamed, not loaded. Exit code 1 when something does not hold."""
    from kedit_core.patches.trust import policy_for
    from kedit_core.stacks.file import StackFile, check_stack_order

    trust = policy_for(keys)
    stack = StackFile.load(file)
    result: dict[str, Any] = {"stack": str(file), "patches": [], "order": None, "base": None, "weights": None}
    patches: list[EditPatch] = []
    for entry in stack.patches:
        problem = None
        try:
            patches.append(stack.read_one(entry, trust=trust))
        except KeditError as error:
            problem = str(error)
        result["patches"].append({"id": entry.id, "file": entry.file, "way": entry.way, "problem": problem})
    whole = len(patches) == len(stack.patches)
    if whole:
        try:
            check_stack_order(patches)
        except StackOrderError as error:
            result["order"] = str(error)
        result["base"] = _on_base(ctx, stack, patches, result["patches"])
        if stack.weights_sha256 is not None and result["base"]["problem"] is None:
            result["weights"] = _weights(ctx, stack, patches)
    fits = whole and result["base"]["problem"] is None and not any(row["problem"] for row in result["patches"])
    weights = result["weights"]
    result["passed"] = fits and result["order"] is None and (weights is None or weights["passed"])
    emit(json_to, lambda: result, lambda: _show_verdict(stack, result))
    if fits:
        tell_conflicts(stack, patches)
    if not result["passed"]:
        ctx.exit(1)


def _on_base(
    ctx: click.Context, stack: StackFile, patches: list[EditPatch], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Hold every patch against the base; what is wrong with one goes into its row."""
    from kedit_core.stacks.digest import Fit

    try:
        base = open_base(ctx, stack)
    except KeditError as error:
        return {"base": stack.base, "problem": str(error)}
    fit = Fit(base)
    with progress("comparing", total=len(patches)) as step:
        for patch, row in zip(patches, rows, strict=True):
            try:
                fit.check(patch)
            except KeditError as error:
                row["problem"] = str(error)
            step.advance()
    return {"base": stack.base, "problem": None}


def _weights(ctx: click.Context, stack: StackFile, patches: list[EditPatch]) -> dict[str, Any]:
    """The digest found from the files. Another one passes where it may be rounding: recorded with other arithmetic."""
    from kedit_core.stacks.digest import arithmetic, folder_digest, other_weights

    ways = [(patch, each.way) for patch, each in zip(patches, stack.patches, strict=True)]
    try:
        found = folder_digest(open_base(ctx, stack), ways, str(stack.dtype), progress)
    except KeditError as error:
        return {"recorded": stack.weights_sha256, "found": None, "problem": str(error), "passed": False}
    problem = other_weights(stack, found, arithmetic())
    passed = problem is None or stack.arithmetic != arithmetic()
    return {"recorded": stack.weights_sha256, "found": found, "problem": problem, "passed": passed}


def _show_verdict(stack: StackFile, result: dict[str, Any]) -> None:
    rows = [(row["id"][:12], row["file"], row["problem"] or "as it should be") for row in result["patches"]]
    if rows:
        show_table(("patch", "file", ""), rows)
    base, weights = result["base"], result["weights"]
    for problem in (result["order"], base and base["problem"], weights and weights["problem"]):
        if problem:
            note(problem)
    if not result["passed"]:
        note("The stack does not hold.")
    elif weights is None:
        say(f"The stack fits {stack.base}; no digest of its weights is recorded to compare with.")
    elif weights["problem"] is None:
        say(f"The stack fits {stack.base} and gives the weights it records: {weights['found']}")
    else:
        say(f"The stack fits {stack.base}.")
