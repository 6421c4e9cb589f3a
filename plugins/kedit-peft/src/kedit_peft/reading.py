"""A PEFT adapter as a patch: ``kedit patch from-peft``."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from kedit_core.errors import BaseMismatchError, InputError
from kedit_core.folders import FolderBase
from kedit_core.patches import EditPatch, LowRankDelta, MethodRef, path_digest
from kedit_peft import __version__
from kedit_peft.folder import LoraPair, PeftFolder
from kedit_peft.settings import ADVICE
from kedit_peft.writing import CONFIG, WEIGHTS

METHOD = "peft-lora"


def read_peft(
    folder: str | os.PathLike[str],
    base: str | os.PathLike[str],
    *,
    name: str | None = None,
    revision: str | None = None,
) -> EditPatch:
    """The patch that does to a model what merging a PEFT LoRA adapter into it does.

    One ``low_rank_delta`` for each weight: left is ``scaling * B``, right is ``A``; the scaling is folded in exactly
    where the dtype of B holds the product, and in float32 where it does not. Ranks that add nothing are left out.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors; nothing else is read.
        base: the folder of the model that the adapter is for; its weights are only hashed, one at a time.
        name: what the patch says of the base: a Hub id or a registered name.
        revision: of a Hub model.

    Raises:
        InputError: an adapter that is more than low-rank changes of weights, or a folder that is malformed.
        BaseMismatchError: the model has no such weight, or one of another size.
    """
    adapter = PeftFolder.open(Path(folder))
    known = FolderBase.open(base)
    for pair in adapter.pairs:
        _check(pair, known)
    for module in adapter.copies:
        _check_copy(module, adapter, known)
    operations = [delta for pair in adapter.pairs if (delta := _delta(pair, adapter)) is not None]
    if not operations:
        raise InputError(f"{folder} changes nothing: all its products are zero; is it a trained adapter?")
    settings = adapter.settings
    return EditPatch(
        method=MethodRef(name=METHOD, distribution="kedit-peft", version=__version__),
        hparams={
            "r": settings.r,
            "lora_alpha": settings.alpha,
            "use_rslora": settings.rslora,
            "rank_pattern": dict(settings.ranks),
            "alpha_pattern": dict(settings.alphas.values),
            "adapter_sha256": {file: path_digest(adapter.folder / file) for file in (CONFIG, WEIGHTS)},
        },
        base=known.base_of(operations, name, revision),
        operations=operations,
    )


def _check(pair: LoraPair, base: FolderBase) -> None:
    """Refuse what cannot be a change of one weight of the base, before any tensor is read."""
    place = f"{pair.module}.weight"
    names = base.names
    if place not in names.shapes:
        raise BaseMismatchError(
            f"{names.architecture} in {base.checkpoint.folder} has no weight {place!r}, which the adapter changes; "
            "give the model that the adapter was trained on"
        )
    if len(tied := names.tied(place, base.checkpoint)) > 1:
        raise InputError(
            f"{place!r} is tied to {next(each for each in tied if each != place)!r} in the base, and the adapter "
            "changes only one of the two, which a patch cannot say; leave the layer out when training"
        )
    stored, layout = names.shapes[place], names.layouts[place]
    shape = tuple(reversed(stored)) if layout == "in_out" else stored
    if layout == "as_stored" or shape != pair.shape:
        raise BaseMismatchError(
            f"{place!r} is {list(shape)} ([out, in]) in {base.checkpoint.folder}, and the adapter's factors are for "
            f"{list(pair.shape)}; give the model that the adapter was trained on"
        )


def _check_copy(module: str, adapter: PeftFolder, base: FolderBase) -> None:
    """Refuse a base weight saved in the adapter that the base does not have: it was trained, or resized."""
    place, (name, shape) = f"{module}.weight", adapter.copies[module]
    if place not in base.names.shapes or shape != base.names.shapes[place]:
        held = f"a weight {place!r} of shape {list(shape)}, unlike the base"
    elif torch.equal(adapter.tensor(name).double(), base.tensor(place).double()):
        return
    else:
        held = f"other values of {place!r} than the base"
    raise InputError(f"the adapter in {adapter.folder} holds {held}, which is no low-rank change; {ADVICE}")


def _delta(pair: LoraPair, adapter: PeftFolder) -> LowRankDelta | None:
    """The operation of one module, or None when it adds nothing."""
    a, b = adapter.tensor(pair.a), adapter.tensor(pair.b)
    if a.dtype != b.dtype:
        a, b = a.float(), b.float()
    place = f"{pair.module}.weight"
    if not (a.isfinite().all() and b.isfinite().all()):
        raise InputError(f"the adapter's factors of {place!r} hold NaN or infinity; look for the step that diverged")
    scale = adapter.settings.scale(pair.module, pair.rank)
    used = (a != 0).any(1) & (b != 0).any(0)
    if not (scale and used.any()):
        return None
    left = scaled(b[:, used], scale)
    right = a[used].to(left.dtype)
    if pair.embedding:
        left, right = right.T, left.T
    return LowRankDelta(place, left, right)


def scaled(factor: Tensor, scale: float) -> Tensor:
    """``scale * factor`` in the factor's dtype where that holds it exactly, else in float32 (float64 stays)."""
    product = factor.to(torch.float64) * scale
    narrow = product.to(factor.dtype)
    if torch.equal(narrow.to(torch.float64), product):
        return narrow
    wide = product.to(torch.promote_types(factor.dtype, torch.float32))
    if not wide.isfinite().all():
        raise InputError("the adapter's scaled factors are too large for float32; look for the step that diverged")
    return wide
