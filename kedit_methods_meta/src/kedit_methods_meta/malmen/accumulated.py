"""Rounds of a sequence solved as one batch: each patch keeps its keys and wanted changes, and only adds what is new.

With the ridge regression's solution ``S`` of all rows and ``S0`` of those before, ``S - S0 = (K^T K + lambda I)^-1
K_new^T (D_new - K_new S0)`` (recursive least squares), of rank at most the new rows. All rows are read on the unedited
weights, so that the sum of the patches does not depend on the order of the rounds.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.errors import InputError
from kedit_core.patches import DenseDelta, EditPatch, LowRankDelta
from kedit_methods_meta.edited import LowRank
from kedit_methods_meta.factors import Factors
from kedit_methods_meta.malmen.editor import MalmenEditor

_ROLE, _KEYS, _VALUES = "editor", "keys.", "values."


def check(context: EditContext, editor: str) -> None:
    """Refuse patches of this method on the model that cannot be solved for again.

    editor: digest of the editor that edits now. Raises InputError for patches that were made without ``accumulate``, or
    with another editor.
    """
    for patch in _earlier(context):
        for state in patch.states():
            if not state.config.get("accumulated"):
                raise InputError(
                    f"the patch {patch.id[:12]} on the model was made without accumulate, so its edits cannot be "
                    "solved for again; take it off, or go on without accumulate"
                )
            if state.config.get("resources", {}).get(_ROLE) != editor:
                raise InputError(
                    f"the patch {patch.id[:12]} on the model was made with another editor, so its edits cannot be "
                    "solved for together with these; take it off, or use that editor"
                )


def solve(
    context: EditContext, editor: MalmenEditor, factors: Mapping[str, Factors], values: Mapping[str, Tensor]
) -> tuple[list[LowRankDelta | DenseDelta], dict[str, Tensor]]:
    """What must be added to the weights so that they are solved for all rows, and the rows that this patch keeps."""
    earlier = _earlier(context)
    whole = _unbroken(context, earlier)
    operations: list[LowRankDelta | DenseDelta] = []
    kept: dict[str, Tensor] = {}
    for name, wanted in values.items():
        new = factors[name].inputs
        kept[_KEYS + name], kept[_VALUES + name] = new, wanted
        states = [state.tensors for patch in earlier for state in patch.states()]
        before = [(each[_KEYS + name].to(new), each[_VALUES + name].to(wanted)) for each in states]
        keys = torch.cat([*(each for each, _ in before), new])
        normal = editor.normal(name, keys)
        if whole:
            first = torch.zeros(new.shape[1], wanted.shape[1]).to(wanted)
            if before:
                old = editor.normal(name, keys[: -len(new)])
                first = old.shift(torch.cat([each for _, each in before]))
            rows = normal.spread(slice(len(keys) - len(new), None))
            change = LowRank(rows, wanted - new @ first, factors[name].edit).operation(name)
        else:
            shift = normal.shift(torch.cat([*(each for _, each in before), wanted])).T
            change = DenseDelta(name, shift - _present(earlier, name, shift))
        operations += [] if change is None else [change]
    return operations, kept


def _earlier(context: EditContext) -> list[EditPatch]:
    """Patches of this method on the model, in stack order."""
    name = context.method.name if context.method else None
    return [entry.patch for entry in context.stack.patches if entry.patch.method.name == name]


def _unbroken(context: EditContext, earlier: list[EditPatch]) -> bool:
    """Whether the patches' sum is the solution of their rows: nothing that they were made on was taken off since."""
    present = {entry.patch.id for entry in context.stack.patches}
    return all(parent in present for patch in earlier for parent in patch.parents)


def _present(earlier: list[EditPatch], name: str, like: Tensor) -> Tensor:
    """What the patches add to a weight, ``[out, in]``."""
    total = torch.zeros_like(like)
    for patch in earlier:
        for operation in patch.operations:
            if isinstance(operation, (LowRankDelta, DenseDelta)) and operation.place == name:
                total += operation.delta(tuple(like.shape), like.dtype, like.device)
    return total
