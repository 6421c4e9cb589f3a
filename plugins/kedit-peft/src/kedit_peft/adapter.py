"""A LoRA adapter in the form that every server takes: one rank for all weights, and a scale of one.

PEFT's ``W + (alpha / r) B A`` (Hu et al. 2021, arXiv 2106.09685, section 4.1) with ``alpha = r``: B is a patch's left
factor ``[out, r]`` and A its right one ``[r, in]``, padded with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen

from kedit_core.contract import ExportReport
from kedit_core.errors import InputError
from kedit_core.models import Layout
from kedit_core.patches import EditPatch
from kedit_peft.factors import Change, Factors, change_of
from kedit_peft.places import ChangedWeight, changed_weights

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of --max-lora-rank
_LARGEST = 1 << 16  # no layer is that wide; a slip of the finger would fill the memory with padding
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@frozen(kw_only=True)
class AdapterWeight:
    """One weight of an adapter.

    Attributes:
        place, module, layout: as in :class:`~kedit_peft.places.ChangedWeight`.
        factors: as written: padded, in the adapter's dtype.
        needed: their rank without the padding.
        error: what they miss of the change, relative (Frobenius).
    """

    place: str
    module: str
    layout: Layout
    factors: Factors
    needed: int
    error: float


@frozen(kw_only=True)
class Adapter:
    """Factors of one rank for some weights of a model."""

    rank: int
    dtype: str
    weights: tuple[AdapterWeight, ...]

    def report(self, notes: Sequence[str], **details: Any) -> ExportReport:
        """What is told of it."""
        return ExportReport(
            errors={weight.place: weight.error for weight in self.weights},
            details={
                "rank": self.rank,
                "dtype": self.dtype,
                "weights": len(self.weights),
                "ranks": {weight.place: weight.needed for weight in self.weights},
                **details,
            },
            notes=tuple(notes),
        )


def build_adapter(
    patches: Sequence[EditPatch],
    *,
    rank: int | None = None,
    max_rank: int | None = None,
    tolerance: float | None = None,
    dtype: str = "float32",
    served: Sequence[int] = VLLM_RANKS,
) -> Adapter:
    """The adapter that does what patches of one base do together.

    Args:
        rank: of all factors; by default the greatest that is needed, rounded up to one of ``served``.
        max_rank: each weight's change is truncated to its best approximation of this rank.
        tolerance: the greatest relative error (Frobenius) of a weight that is accepted.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        served: ranks that servers take, ascending; a rank above the last stays as it is.

    Raises:
        InputError: an operation that no adapter can say, an option that makes no sense, a change that needs a greater
            rank, or an error above the tolerance; the message names the place.
    """
    _check_options(rank, max_rank, tolerance, dtype)
    changes = [(weight, change_of(weight.deltas, weight.shape)) for weight in changed_weights(patches)]
    best = [(weight, change, change.best(max_rank)) for weight, change in changes if change.norm > 0]
    if not best:
        raise InputError("the patch changes no weight, so there is nothing to export; look at it with kedit patch show")
    width = _width([(weight.place, factors.rank) for weight, _, factors in best], rank, served)
    weights = tuple(_weight(*each, width, dtype) for each in best)
    if tolerance is not None:
        _check_errors(weights, tolerance)
    return Adapter(rank=width, dtype=dtype, weights=weights)


def _weight(weight: ChangedWeight, change: Change, factors: Factors, width: int, dtype: str) -> AdapterWeight:
    cast = factors.cast(DTYPES[dtype])
    if not (cast.left.isfinite().all() and cast.right.isfinite().all()):
        raise InputError(f"the change of {weight.place!r} is too large for {dtype}; export it as float32")
    return AdapterWeight(
        place=weight.place,
        module=weight.module,
        layout=weight.layout,
        factors=cast.padded(width),
        needed=factors.rank,
        error=change.error(cast),
    )


def _width(needed: Sequence[tuple[str, int]], rank: int | None, served: Sequence[int]) -> int:
    place, greatest = max(needed, key=lambda item: item[1])
    if rank is None:
        return next((known for known in served if known >= greatest), greatest)
    if rank < greatest:
        raise InputError(
            f"the change of {place!r} has rank {greatest}, which rank={rank} cannot hold; give a greater rank, or "
            f"max_rank={rank} to truncate it"
        )
    return rank


def _check_errors(weights: Sequence[AdapterWeight], tolerance: float) -> None:
    worst = max(weights, key=lambda weight: weight.error)
    if worst.error > tolerance:
        raise InputError(
            f"at rank {worst.needed} the change of {worst.place!r} has a relative error of {worst.error:.3g}, above "
            f"the tolerance of {tolerance:g}; raise max_rank or the tolerance, or choose a wider dtype"
        )


def _check_options(rank: Any, max_rank: Any, tolerance: Any, dtype: Any) -> None:
    for name, value in (("rank", rank), ("max_rank", max_rank)):
        if value is not None and (type(value) is not int or not 1 <= value <= _LARGEST):
            raise InputError(f"{name} is {value!r}; give a whole number from 1 to {_LARGEST}")
    if tolerance is not None and (isinstance(tolerance, bool) or not isinstance(tolerance, int | float)):
        raise InputError(f"tolerance is {tolerance!r}; give a number")
    if tolerance is not None and not tolerance >= 0:
        raise InputError(f"tolerance is {tolerance!r}; give a number from 0")
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; it is one of {', '.join(DTYPES)}")
