"""Rounds of a sequence solved as one batch: each patch keeps its keys and wanted changes, and only adds what is new.

With the ridge regression's solution ``S`` of all rows and ``S0`` of those before, ``S - S0 = (K^T K + lambda I)^-1
K_new^T (D_new - K_new S0)`` (recursive least squares), of rank at most the new rows. All rows are read on the unedited
weights, so that the sum of the patches does not depend on the order of the rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import field, frozen
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.errors import InputError
from kedit_core.patches import DenseDelta, EditPatch, LowRankDelta
from kedit_core.training import EditorFolder
from kedit_methods_meta.edited import LowRank
from kedit_methods_meta.factors import Factors
from kedit_methods_meta.malmen.editor import MalmenEditor
from kedit_methods_meta.places import Place
from kedit_methods_meta.saved_editor import ROLE

_KEYS, _VALUES = "keys.", "values."
_SAME = 1e-3  # of the greatest number, within which two changes of a weight are one


@frozen(eq=False)
class Earlier:
    """What the patches of this method on the model hold.

    Attributes:
        patches: in stack order.
        keys, values: by name of weight, ``[N, in]`` and ``[N, out]`` of each round.
    """

    patches: tuple[EditPatch, ...] = ()
    keys: dict[str, list[Tensor]] = field(factory=dict)
    values: dict[str, list[Tensor]] = field(factory=dict)

    def present(self, name: str, like: Tensor) -> Tensor:
        """What the patches add to a weight, ``[out, in]``."""
        total = torch.zeros_like(like)
        for patch in self.patches:
            for operation in patch.operations:
                if isinstance(operation, (LowRankDelta, DenseDelta)) and operation.place == name:
                    total += operation.delta(tuple(like.shape), like.dtype, like.device)
        return total


def earlier(context: EditContext, editor: MalmenEditor) -> Earlier:
    """What is solved for again.

    Raises InputError for patches that were made without ``accumulate`` or with another editor, or that do not hold
    their rows.
    """
    name = context.method.name if context.method else None
    patches = tuple(entry.patch for entry in context.stack.patches if entry.patch.method.name == name)
    found = Earlier(patches, {place.name: [] for place in editor.places}, {place.name: [] for place in editor.places})
    digest = EditorFolder.load(context, ROLE).digest if patches else ""
    for patch in patches:
        for state in patch.states():
            _check(patch, state.config, digest)
            for place in editor.places:
                keys, values = (state.tensors.get(part + place.name) for part in (_KEYS, _VALUES))
                if keys is None or values is None or not _rows_of(place, keys, values):
                    raise InputError(
                        f"the patch {patch.id[:12]} on the model lacks its keys or values for {place.name}, so its "
                        "edits cannot be solved for again; take it off, and get the file again"
                    )
                found.keys[place.name].append(keys)
                found.values[place.name].append(values)
    return found


def solve(
    editor: MalmenEditor, before: Earlier, factors: Mapping[str, Factors], values: Mapping[str, Tensor]
) -> tuple[list[LowRankDelta | DenseDelta], dict[str, Tensor]]:
    """What must be added to the weights so that they are solved for all rows, and the rows that this patch keeps."""
    operations: list[LowRankDelta | DenseDelta | None] = []
    kept: dict[str, Tensor] = {}
    for name, wanted in values.items():
        new = factors[name].inputs.to(wanted.device)
        kept[_KEYS + name], kept[_VALUES + name] = new, wanted
        old_keys = [each.to(new) for each in before.keys[name]]
        old_values = [each.to(wanted) for each in before.values[name]]
        keys, every = torch.cat([*old_keys, new]), torch.cat([*old_values, wanted])
        normal = editor.normal(name, keys)
        present = before.present(name, new.new_zeros(wanted.shape[1], new.shape[1]))
        if _solved(editor, name, old_keys, old_values, present):
            rows = normal.spread(slice(len(keys) - len(new), None))
            change = LowRank(rows, wanted - new @ present.T, factors[name].edit)
            operations.append(change.operation(name))
        else:
            operations.append(DenseDelta(name, normal.shift(every).T - present))
    return [each for each in operations if each is not None], kept


def _solved(editor: MalmenEditor, name: str, keys: Sequence[Tensor], values: Sequence[Tensor], present: Tensor) -> bool:
    """Whether what is on a weight is the solution of the rows before: not so when a patch was taken off since, or when
    patches were made apart from one another."""
    if not keys:
        return True
    solution = editor.normal(name, torch.cat(list(keys))).shift(torch.cat(list(values))).T
    return float((solution - present).abs().max()) <= _SAME * float(solution.abs().max())


def _check(patch: EditPatch, config: Mapping[str, object], digest: str) -> None:
    if not config.get("accumulated"):
        raise InputError(
            f"the patch {patch.id[:12]} on the model was made without accumulate, so its edits cannot be solved for "
            "again; take it off, or go on without accumulate"
        )
    used = config.get("resources")
    if not isinstance(used, Mapping) or used.get(ROLE) != digest:
        raise InputError(
            f"the patch {patch.id[:12]} on the model was made with another editor, so its edits cannot be solved for "
            "together with these; take it off, or use that editor"
        )


def _rows_of(place: Place, keys: Tensor, values: Tensor) -> bool:
    return keys.shape == (len(keys), place.width) and values.shape == (len(keys), place.out)
