"""What was changed in this checkpoint? Two folders are compared, one tensor at a time; no model is loaded.

A change is ``edited - base`` in float32 (float64 for float64 weights), in [out, in] terms. Its rank is estimated: what
was rounded to a dtype of spacing ``u`` carries noise of about ``u / sqrt(12)`` in each element, whose largest singular
value is about the norm of its largest row plus that of its largest column (for independent elements; Bandeira and van
Handel 2016). Noise is counted of the weight and of the change, since tools round both. Singular values above 1.5 times
that, and above a millionth of the largest, count. So a LoRA merged into bfloat16 weights shows with its rank.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kedit_core.comparing.audit import Audit, Claim, Kind, TensorAudit
from kedit_core.comparing.changes import operations_at
from kedit_core.comparing.exact import bits, delta_of, frobenius, peak, same_bits
from kedit_core.comparing.low_rank import leading
from kedit_core.comparing.pairs import FileDifference, FolderPair, Paired
from kedit_core.errors import BaseMismatchError, StackDisturbedError
from kedit_core.folders._record import History
from kedit_core.folders.disk import weights_only
from kedit_core.patches.digests import dtype_name
from kedit_core.patches.format import EditPatch
from kedit_core.patches.operations import WeightOperation
from kedit_core.patches.weights import form_weight

if TYPE_CHECKING:
    from kedit_core.editing.progress import Progress

__all__ = ["Audit", "Claim", "FileDifference", "TensorAudit", "audit_folders"]

MOST_RANKS = 32  # singular values looked for; more are told as "more than"
_SHARE = 1e-6
_MARGIN = 1.5
_ROWS = 256  # looked at together


def audit_folders(
    base_folder: str | os.PathLike[str],
    edited_folder: str | os.PathLike[str],
    *,
    patches: Sequence[EditPatch] = (),
    quick: bool = False,
    progress: Progress | None = None,
) -> Audit:
    """Everything in which ``edited_folder`` differs from ``base_folder``; both are read as they are.

    With ``patches``, or when the record of an EDITED that kedit edited claims some: also whether its weights are BASE
    with exactly these, in this order. Memory: a few times one parameter, and the patches.

    Args:
        patches: what is expected to be in EDITED, lowest first; by default what its record claims.
        quick: leave out ranks, which need some products with each changed matrix.
        progress: called as ``progress(text, total=bytes)``.

    Raises:
        InputError: a folder that cannot be read, or a patch that changes more than weights.
        BaseMismatchError: different architectures, or a patch for another.
    """
    pair = FolderPair.open(base_folder, edited_folder)
    claim, claimed = _claim(pair)
    expected: Sequence[EditPatch] | None = patches or claimed
    wanted = _operations(expected or (), pair)
    tensors: list[TensorAudit] = []
    compared = 0
    with progress("comparing", total=pair.nbytes) if progress is not None else nullcontext() as step:
        for found in pair.tensors():
            compared += 1
            explained = None if expected is None else _explained(found, pair, wanted)
            if found.status != "same" or explained is False:
                tensors.append(_audited(found, pair, explained, quick))
            if step is not None:
                step.advance(found.nbytes)
    return Audit(
        architecture=pair.base.names.architecture,
        compared=compared,
        tensors=tuple(tensors),
        config_keys=pair.config_keys(),
        files=tuple(pair.files()),
        unread=pair.unread,
        claim=claim,
        expected=None if expected is None else tuple(patch.id for patch in expected),
        as_expected=None if expected is None else all(each.explained for each in tensors),
    )


def _claim(pair: FolderPair) -> tuple[Claim | None, tuple[EditPatch, ...] | None]:
    """What the record of EDITED claims, and the patches where it can be believed."""
    try:
        history = History.of(pair.edited.checkpoint)
    except StackDisturbedError as error:
        return Claim(problem=str(error)), None
    if history is None:
        return None, None
    return Claim(patches=tuple((each.id, each.method) for each in history.record.patches)), history.patches


def _operations(patches: Sequence[EditPatch], pair: FolderPair) -> dict[str, list[WeightOperation]]:
    """place -> what the patches do there, in order."""
    found: dict[str, list[WeightOperation]] = {}
    for patch in patches:
        weights_only(patch)
        if patch.base.architecture != pair.base.names.architecture:
            raise BaseMismatchError(
                f"the patch {patch.id[:12]} is for a {patch.base.architecture} and these are folders of a "
                f"{pair.base.names.architecture}; give patches for this model"
            )
        for place in patch.places:
            problem: str | None = "there is no such parameter"
            if place in pair.base.names.shapes:
                problem = pair.base.misfit(place, patch.base.tensors[place])
            if problem is not None:
                raise BaseMismatchError(
                    f"the patch {patch.id[:12]} does not fit {place} in {pair.base.checkpoint.folder} ({problem}); "
                    "give patches for this model"
                )
            first = pair.base.names.first(place, pair.base.checkpoint)
            found.setdefault(first, []).extend(operations_at(patch, place))
    return found


def _explained(found: Paired, pair: FolderPair, wanted: Mapping[str, Sequence[WeightOperation]]) -> bool:
    operations = wanted.get(found.place)
    if not operations:
        return found.status == "same"
    if found.status not in ("same", "changed") or found.edited_key is None:
        return False
    layout = pair.base.names.layouts[found.place]
    weight, _ = form_weight(pair.base.tensor(found.place), layout, operations)
    return same_bits(weight, pair.edited.shard(found.edited_key).tensor(found.edited_key))


def _audited(found: Paired, pair: FolderPair, explained: bool | None, quick: bool) -> TensorAudit:
    told: dict[str, Any] = {"place": found.place, "status": found.status, "why": found.why, "explained": explained}
    if found.status == "same":
        told["why"] = "as in MODEL, and the patches change it"
    if found.edited_key is None or found.status not in ("same", "changed", "dtype"):
        return TensorAudit(**told)
    base = pair.base.tensor(found.place)
    edited = pair.edited.shard(found.edited_key).tensor(found.edited_key)
    told |= {"dtype": dtype_name(edited.dtype), "shape": tuple(edited.shape)}
    if found.status == "same":
        return TensorAudit(**told)
    return TensorAudit(**told, **_change(base, edited, pair, found, quick))


def _change(base: Tensor, edited: Tensor, pair: FolderPair, found: Paired, quick: bool) -> dict[str, Any]:
    """The numbers of a change."""
    layout = pair.base.names.layouts[found.place]
    rounded = base.to(edited.dtype)
    mask = bits(rounded) != bits(edited)
    elements = int(mask.sum())
    # where the dtype differs too, in the wider of the two
    wide = torch.promote_types(base.dtype, edited.dtype)
    delta = delta_of(base.to(wide), edited.to(wide), layout)
    size, norm = frobenius(base.to(delta.dtype)), frobenius(delta)
    if not (math.isfinite(norm) and math.isfinite(size)):
        return {"kind": "NaN or infinity", "elements": elements}
    told: dict[str, Any] = {
        "elements": elements,
        "norm": norm,
        "relative": norm / size if size else None,
        "largest": peak(delta),
    }
    if not elements:
        return {"kind": "rounded to another dtype", **told}
    if delta.dim() == 2:
        touched = mask.T if layout == "in_out" else mask
        told |= {"rows": int(touched.any(1).sum()), "columns": int(touched.any(0).sum())}
        if not quick:
            told |= _rank(delta, edited.T if layout == "in_out" else edited)
    kind = "signs of zeros" if norm == 0 else _kind(told, tuple(delta.shape))
    return {"kind": kind, **told}


def _rank(delta: Tensor, edited: Tensor) -> dict[str, Any]:
    """Singular values of a change above the noise of rounding; see this module. Both are ``[out, in]``."""
    out, inner = delta.shape
    largest = peak(delta) or 1.0
    _, values, _ = leading(delta / largest, min(MOST_RANKS + 1, out, inner))
    rows, columns = (delta.new_zeros(size, dtype=torch.float64) for size in (out, inner))
    for start in range(0, out, _ROWS):
        block = slice(start, start + _ROWS)
        squares = _spacing(edited[block].to(delta.dtype), edited.dtype).div_(largest).square_()
        squares += _spacing(delta[block], edited.dtype).div_(largest).square_()
        rows[block], columns = squares.sum(1), columns + squares.sum(0)
    noise = sum(float((sums.max() / 12).sqrt()) for sums in (rows, columns))
    count = int((values > max(_MARGIN * noise, _SHARE * float(values[0]))).sum())
    return {"rank": min(count, MOST_RANKS), "rank_is_bound": count > MOST_RANKS}


def _spacing(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours in ``dtype``, at each element, in float64; 0 at 0, which is not rounded."""
    _, exponents = torch.frexp(tensor)
    known = torch.finfo(dtype)
    return torch.exp2((exponents - 1).double()).clamp(min=known.tiny) * known.eps * (tensor != 0)


def _kind(told: Mapping[str, Any], shape: tuple[int, ...]) -> Kind:
    """The way of saying a change that takes the fewest numbers."""
    return min(_costs(told, shape), key=lambda each: each[0])[1]


def _costs(told: Mapping[str, Any], shape: tuple[int, ...]) -> Iterator[tuple[int, Kind]]:
    yield torch.Size(shape).numel(), "dense"
    yield 2 * told["elements"], "elements"
    if len(shape) == 2:
        out, inner = shape
        yield told["rows"] * (inner + 1), "rows"
        yield told["columns"] * (out + 1), "columns"
        if told.get("rank") and not told["rank_is_bound"]:
            yield told["rank"] * (out + inner), "low rank"
