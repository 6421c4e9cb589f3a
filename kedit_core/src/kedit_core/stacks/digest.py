"""What a stack file's ``weights_sha256`` is, and how it is found from a model folder without loading the model.

It covers every parameter that one of the patches was made for (``base.tensors`` of their manifests), as it is with the
stack on: the changed ones, those beneath attached branches, those of modules with operations. Each, sorted by name,
gives the line ``name NUL dtype NUL [shape] NUL sha256-of-its-bytes LF``; the digest is the SHA-256 of these lines:
``PatchStack.weights_digest(touched(patches))``. Attached branches, module operations and routers are in no weight: they
follow from the patch's id and its way, which the file states. Parameters that no patch is about are not covered.

Weights are formed by sums of floating-point products, so a digest holds for one torch build on one kind of processor
(:func:`arithmetic`); elsewhere the same stack may differ from it by rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from attrs import evolve, field, frozen

from kedit_core.contract import Way
from kedit_core.errors import BaseMismatchError, InputError
from kedit_core.folders._shards import FLOAT_DTYPES
from kedit_core.folders.base import FolderBase
from kedit_core.patches.digests import dtype_name, tensor_digest
from kedit_core.patches.format import BaseTensor, EditPatch
from kedit_core.patches.operations import WEIGHT_OPERATIONS, LowRankDelta, WeightOperation
from kedit_core.patches.weights import form_weight
from kedit_core.stacks.file import StackFile

if TYPE_CHECKING:
    from kedit_core.editing.progress import Progress


def touched(patches: Sequence[EditPatch]) -> tuple[str, ...]:
    """Every parameter that one of the patches was made for, sorted by name."""
    return tuple(sorted({place for patch in patches for place in patch.base.tensors}))


def arithmetic(device: torch.device | str = "cpu") -> str:
    """What sums are formed with: torch's build and the kind of processor."""
    device = torch.device(device)
    kind = device.type
    if kind == "cpu":
        kind = f"cpu {torch.backends.cpu.get_cpu_capability()}"
    elif kind == "cuda":
        kind = torch.cuda.get_device_name(device)
    return f"torch {torch.__version__} on {kind}"


def stored_dtype(base: FolderBase) -> str:
    """The dtype that a folder is loaded in unless another is asked for: what its config states, else that of its files.

    Raises InputError for a folder without floating-point weights.
    """
    config = base.checkpoint.config
    stated = config.get("dtype") or config.get("torch_dtype")
    if isinstance(stated, str) and stated != "auto":
        return stated.removeprefix("torch.")
    for key in base.checkpoint.file_of:
        if (stored := base.checkpoint.entry(key).dtype) in FLOAT_DTYPES:
            return dtype_name(FLOAT_DTYPES[stored])
    raise InputError(f"{base.checkpoint.folder} holds no floating-point weights; give a model folder")


def folder_digest(
    base: FolderBase, stack: Sequence[tuple[EditPatch, Way]], dtype: str, progress: Progress | None = None
) -> str | None:
    """The digest of a stack on a folder, as the loaded model would have it; None when its patches are about no weight.

    Args:
        stack: patches and their ways, lowest first.
        dtype: what the model is loaded in.
        progress: called as ``progress(text, total=parameters)``.

    Raises:
        InputError: weights that cannot be read from files as the model has them.
        BaseMismatchError: the folder does not hold a parameter. Memory: one parameter and its change.
    """
    places = touched([patch for patch, _ in stack])
    if not places:
        return None
    _check_ties(base, places)
    whole = hashlib.sha256()
    with progress("digesting the weights", total=len(places)) if progress else nullcontext() as step:
        for place in places:
            loaded = base.tensor(place).to(_loaded_dtype(base, place, dtype))
            if operations := [each for patch, way in stack for each in _merged(patch, way, place)]:
                loaded, _ = form_weight(loaded, base.names.layouts[place], operations)
            line = f"{place}\0{dtype_name(loaded.dtype)}\0{list(loaded.shape)}\0{tensor_digest(loaded)}\n"
            whole.update(line.encode())
            if step is not None:
                step.advance()
    return whole.hexdigest()


def other_weights(stack: StackFile, found: str | None, here: str) -> str | None:
    """What to say when ``found``, computed with the arithmetic ``here``, is not the digest a stack records, else None.

    With another arithmetic than the stack's it may be rounding alone.
    """
    if found == stack.weights_sha256:
        return None
    digests = f"digest {str(found)[:12]}, not {str(stack.weights_sha256)[:12]}"
    if stack.arithmetic == here:
        return f"the weights with the stack on are not those it records ({digests}); get base and patches again"
    return (
        f"the weights with the stack on are not bit for bit those it records ({digests}): it was recorded with "
        f"{stack.arithmetic} and this is {here}, where sums may round otherwise; the patches fit the base all the same"
    )


@frozen
class Fit:
    """Whether patches are for a folder; what several of them were made for is read and compared once."""

    base: FolderBase
    _fitting: dict[str, list[BaseTensor]] = field(factory=dict, init=False)

    def check(self, patch: EditPatch) -> None:
        """BaseMismatchError unless the folder holds what the patch was made for."""
        folder = self.base.checkpoint.folder
        if patch.base.architecture != self.base.names.architecture:
            raise BaseMismatchError(
                f"patch {patch.id[:12]} is for a {patch.base.architecture}, and {folder} holds a "
                f"{self.base.names.architecture}; take the right base"
            )
        tensors = patch.base.tensors.items()
        unknown = {place: each for place, each in tensors if each not in self._fitting.get(place, ())}
        for found in self.base.compare(evolve(patch.base, tensors=unknown)):
            if found.problem is not None:
                raise BaseMismatchError(
                    f"{found.place} in {folder} is not what patch {patch.id[:12]} was made for ({found.problem}); "
                    "take the right base"
                )
            self._fitting.setdefault(found.place, []).append(unknown[found.place])


def _merged(patch: EditPatch, way: Way, place: str) -> list[WeightOperation]:
    """The operations of a patch that are in the weight itself, in order."""
    return [
        each
        for each in patch.operations
        if isinstance(each, WEIGHT_OPERATIONS)
        and each.place == place
        and not (way == "attached" and isinstance(each, LowRankDelta))
    ]


def _check_ties(base: FolderBase, places: Sequence[str]) -> None:
    """InputError when two of the names are one parameter: each line would lack the other's changes."""
    names: dict[tuple[str, ...], str] = {}
    for place in places:
        if (other := names.setdefault(base.stored(place), place)) != place:
            raise InputError(
                f"{other} and {place} are one tied parameter in {base.checkpoint.folder}, and the patches name it "
                "differently; compute one of them anew"
            )


def _loaded_dtype(base: FolderBase, place: str, dtype: str) -> torch.dtype:
    """``dtype``, unless transformers keeps the parameter in float32 for this class of models, by its own rule."""
    import transformers
    from transformers.core_model_loading import build_glob_alternation

    wanted: torch.dtype = getattr(torch, dtype)
    model_class = getattr(transformers, base.names.architecture, None)
    kept: list[str] = []
    if wanted == torch.float16:
        kept += getattr(model_class, "_keep_in_fp32_modules", None) or ()
    if wanted in (torch.float16, torch.bfloat16):
        kept += getattr(model_class, "_keep_in_fp32_modules_strict", None) or ()
    return torch.float32 if kept and build_glob_alternation(kept)[0].search(place) else wanted
