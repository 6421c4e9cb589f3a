"""Low-rank deltas of many patches beside the same modules, each acting on its own rows of a batch alone.

How many edits that were made apart are read in one batch: row i sees its own patch's deltas, as if it were attached. In
float32 that equals merging each patch in turn but for rounding. Nothing is written, and no stack knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kedit_core.errors import InputError
from kedit_core.forward.scope import PromptScope
from kedit_core.patches.format import EditPatch
from kedit_core.patches.operations import LowRankDelta
from kedit_core.patches.places import find_place, names_by_parameter
from kedit_core.patches.weights import exact_dtype, exact_maths


def row_fault(model: nn.Module, patch: EditPatch, names: Mapping[int, Sequence[str]] | None = None) -> str | None:
    """Why a patch cannot act on some rows of a batch only, or None: its operations are not all branches.

    ``names`` as :func:`names_by_parameter` gives them, for those who ask of many patches.
    """
    names = names or names_by_parameter(model)
    for operation in patch.operations:
        if not isinstance(operation, LowRankDelta):
            return f"it holds a {operation.type}"
        place = find_place(model, operation.place, names)
        if (fault := place.branch_fault) is not None:
            return fault
    return None


@frozen(eq=False)
class _Beside:
    """What stands beside one module: ``left`` ``[patches, out, r]`` and ``right`` ``[patches, r, in]``; zeros where a
    patch has none, or one of lower rank."""

    left: Tensor
    right: Tensor

    def __call__(self, value: Tensor, owners: Tensor) -> Tensor:
        """``[rows, columns, in]`` -> ``[rows, columns, out]`` in the factors' dtype; ``owners`` ``[rows]``."""
        right, left = self.right[owners], self.left[owners]
        return (value.to(right.dtype) @ right.transpose(1, 2)) @ left.transpose(1, 2)


class RowBranches:
    """The deltas of ``patches``, ready to act on their own rows.

    Args:
        model: with whatever else is on it.
        scope: the scope of its stack, by which kedit's tools tell which text is in which row.
        patches: each of low-rank deltas beside projections only (:func:`row_fault`).

    Memory: ``patches x rank x (in + out)`` numbers for each place, and as much for the rows of a batch while they run.

    Raises InputError for a patch that :func:`row_fault` finds fault with.
    """

    def __init__(self, model: nn.Module, scope: PromptScope, patches: Sequence[EditPatch]) -> None:
        names = names_by_parameter(model)
        for patch in patches:
            if (fault := row_fault(model, patch, names)) is not None:
                raise InputError(f"the patch {patch.id[:12]} cannot act on some rows of a batch only: {fault}")
        self._model, self._scope = model, scope
        self._beside = _collected(model, patches, names)

    @contextmanager
    def on(self, owners: Sequence[int]) -> Iterator[None]:
        """For the length of a block, the caller's text i is read under patch ``owners[i]``."""
        of_text = torch.tensor(list(owners), dtype=torch.long)
        handles: list[RemovableHandle] = []
        try:
            for path, beside in self._beside.items():
                module = self._model.get_submodule(path)
                handles.append(module.register_forward_hook(self._hook(beside, of_text), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, beside: _Beside, of_text: Tensor) -> Callable[..., Tensor]:
        def after(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> Tensor:
            members = self._scope.members
            if members is None:
                raise InputError("rows of this run are not known; read through kedit's generation and scoring")
            value = self._scope.by_row(args[0] if args else kwargs["input"])
            owners = of_text[members.cpu()].to(value.device)
            with exact_maths(value.device):
                added = beside(value, owners).reshape(output.shape)
                return (output.to(added.dtype) + added).to(output.dtype)

        return after


def _collected(
    model: nn.Module, patches: Sequence[EditPatch], names: Mapping[int, Sequence[str]]
) -> dict[str, _Beside]:
    """module -> what stands beside it, over all patches."""
    deltas: dict[str, list[list[LowRankDelta]]] = {}
    for number, patch in enumerate(patches):
        for operation in patch.operations:
            if isinstance(operation, LowRankDelta):
                deltas.setdefault(operation.place, [[] for _ in patches])[number].append(operation)
    found: dict[str, _Beside] = {}
    for name, of_patch in deltas.items():
        place = find_place(model, name, names)
        rank = max(sum(delta.rank for delta in each) for each in of_patch)
        out, wide = place.shape[::-1] if place.layout == "in_out" else place.shape
        device, dtype = place.device, place.dtype
        exact = exact_dtype(dtype) if dtype.is_floating_point else torch.float32
        left = torch.zeros(len(patches), out, rank, dtype=exact, device=device)
        right = torch.zeros(len(patches), rank, wide, dtype=exact, device=device)
        for number, each in enumerate(of_patch):
            at = 0
            for delta in each:
                left[number, :, at : at + delta.rank] = delta.left.to(device, exact)
                right[number, at : at + delta.rank] = delta.right.to(device, exact)
                at += delta.rank
        found[place.module] = _Beside(left, right)
    return found
