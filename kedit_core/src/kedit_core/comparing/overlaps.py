"""Patches held against one another: how much each changes every weight, and whether they change it in the same way.

Only weights are compared. Let two patches change a weight ``W`` by ``D1`` and ``D2``: the sums of their deltas there,
``[out, in]``, in float64.

- norm: Frobenius, ``|D|``; relative norm: ``|D| / |W|``; rank: singular values above a share of the largest.
- cosine: ``<D1, D2> / (|D1| |D2|)``, from -1 (one undoes the other) to 1 (the same but for size).
- overlap of column spaces (what is written) and of row spaces (what it answers to): ``|U1^T U2|_F^2 / min(r1, r2)``
  with orthonormal bases ``U`` of the numerical ranges and ranks ``r``: the mean squared cosine of the principal angles
  (Björck and Golub 1973). 0: orthogonal; 1: one lies in the other; random spaces have ``max(r1, r2) / size``.
- weighted overlap: the cosine of ``D1 D1^T`` and ``D2 D2^T`` (columns), of ``D1^T D1`` and ``D2^T D2`` (rows): the RV
  coefficient (Robert and Escoufier 1976). Directions count by their energy, and no rank is decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit_core.comparing.changes import BaseWeights, base_weight, change_of, operations_at, shape_of
from kedit_core.comparing.comparison import Change, Comparison, LeftOut, Overlap, Pair, PlaceComparison
from kedit_core.comparing.spectra import EXACT, Spectrum, WeightChange, inner
from kedit_core.errors import InputError
from kedit_core.patches.format import EditPatch
from kedit_core.patches.operations import WEIGHT_OPERATIONS, ModuleOperation, Replace, RouterOperation
from kedit_core.patches.summary import describe_operation

if TYPE_CHECKING:
    from kedit_core.editing.progress import Progress

__all__ = ["Change", "Comparison", "LeftOut", "Overlap", "Pair", "PlaceComparison", "compare"]

TOLERANCE = 1e-6  # about eight roundings of float32, in which most patches are kept


def compare(
    patches: Sequence[EditPatch],
    base: BaseWeights | None = None,
    *,
    names: Sequence[str] | None = None,
    quick: bool = False,
    tolerance: float = TOLERANCE,
    progress: Progress | None = None,
) -> Comparison:
    """What two or more patches do to weights, place by place; see this module for what the numbers mean.

    Module and router operations are listed in ``left_out``, and so is a ``replace`` without ``base``. Memory: the
    changes of one place in float64 (low-rank ones as factors), and its base weight.

    Args:
        patches: for models of one architecture; where their bases differ in values, ``notes`` says so.
        base: place -> the base weight as stored: ``FolderBase.open(folder).tensor`` or ``editor.stack.base``, say.
        names: what to call the patches; the beginnings of their ids unless given.
        quick: leave out rank and overlaps where they need a dense SVD.
        tolerance: singular values up to this share of the largest do not count in ranks.
        progress: called as ``progress(text, total=places)``.

    Raises:
        InputError: fewer than two patches, the same one twice, or models of different shape.
        BaseMismatchError: ``base`` is not what a patch was made for.
    """
    called = _names(patches, names)
    notes: list[str] = []
    places = dict.fromkeys(
        operation.place
        for patch in patches
        for operation in patch.operations
        if isinstance(operation, WEIGHT_OPERATIONS)
    )
    compared: list[PlaceComparison] = []
    products = torch.zeros(len(patches), len(patches), dtype=EXACT)
    with progress("comparing", total=len(places)) if progress is not None else nullcontext() as step:
        for place in places:
            shape = shape_of(place, patches, called, notes)
            weight = None if base is None else base_weight(place, patches, called, base, notes)
            changes = [change_of(place, patch, weight) for patch in patches]
            here = _products(changes)
            spectra = [_spectrum(change, shape, quick) for change in changes]
            ranks = [None if each is None else each.rank(tolerance) for each in spectra]
            size = None if weight is None else float(weight.to(EXACT).norm())
            compared.append(
                PlaceComparison(
                    place=place,
                    shape=shape,
                    changes=tuple(
                        None if change is None else _told(patch, place, change, size, rank)
                        for patch, change, rank in zip(patches, changes, ranks, strict=True)
                    ),
                    pairs=tuple(_pairs(changes, _cosines(here), spectra, tolerance)),
                )
            )
            products += here
            if step is not None:
                step.advance()
    return Comparison(
        ids=tuple(patch.id for patch in patches),
        names=called,
        places=tuple(compared),
        norms=tuple(products.diagonal().sqrt().tolist()),
        cosines=_cosines(products),
        left_out=tuple(each for index, patch in enumerate(patches) for each in _left_out(index, patch, base)),
        notes=tuple(dict.fromkeys(notes)),
    )


def _names(patches: Sequence[EditPatch], names: Sequence[str] | None) -> tuple[str, ...]:
    if len(patches) < 2:
        raise InputError(f"a comparison needs two patches or more, and got {len(patches)}; give another one")
    called = tuple(patch.id[:12] for patch in patches) if names is None else tuple(names)
    if len(called) != len(patches) or len(set(called)) != len(called):
        raise InputError(
            f"{len(patches)} patches are called {', '.join(called)}; give each patch once, and each a name of its own"
        )
    first = patches[0].base.architecture
    for name, patch in zip(called, patches, strict=True):
        if patch.base.architecture != first:
            raise InputError(
                f"{called[0]} is for a {first} and {name} for a {patch.base.architecture}; compare patches for the "
                "same model"
            )
    return called


def _told(patch: EditPatch, place: str, change: WeightChange, size: float | None, rank: int | None) -> Change:
    return Change(
        types=tuple(dict.fromkeys(operation.type for operation in operations_at(patch, place))),
        norm=change.norm,
        relative=change.norm / size if size else None,
        rank=rank,
    )


def _pairs(
    changes: Sequence[WeightChange | None],
    cosines: Sequence[Sequence[float | None]],
    spectra: Sequence[Spectrum | None],
    tolerance: float,
) -> Iterator[Pair]:
    for i, j in combinations(range(len(changes)), 2):
        if changes[i] is not None and changes[j] is not None:
            columns, rows = _overlaps(spectra[i], spectra[j], tolerance)
            yield Pair(first=i, second=j, cosine=cosines[i][j], columns=columns, rows=rows)


def _spectrum(change: WeightChange | None, shape: tuple[int, ...], quick: bool) -> Spectrum | None:
    if change is None or len(shape) != 2 or (quick and not isinstance(change, Spectrum)):
        return None
    return change.spectrum()


def _overlaps(
    one: Spectrum | None, other: Spectrum | None, tolerance: float
) -> tuple[Overlap, Overlap] | tuple[None, None]:
    """Of column spaces and of row spaces."""
    if one is None or other is None or not (one.rank(tolerance) and other.rank(tolerance)):
        return None, None
    return (
        _overlap(one.left, one, other.left, other, tolerance),
        _overlap(one.right, one, other.right, other, tolerance),
    )


def _overlap(basis: Tensor, one: Spectrum, other_basis: Tensor, other: Spectrum, tolerance: float) -> Overlap:
    rank, other_rank = one.rank(tolerance), other.rank(tolerance)
    cosines = (basis.T @ other_basis).square()
    # only ratios count: scaled so that fourth powers neither vanish nor overflow
    energy, other_energy = ((each.values / each.values[0]).square() for each in (one, other))
    weighted = energy @ cosines @ other_energy / (energy.norm() * other_energy.norm())
    return Overlap(
        value=float((cosines[:rank, :other_rank].sum() / min(rank, other_rank)).clamp(0, 1)),
        by_chance=max(rank, other_rank) / basis.shape[0],
        weighted=float(weighted.clamp(0, 1)),
    )


def _products(changes: Sequence[WeightChange | None]) -> Tensor:
    """``[patch, patch]`` inner products at one place; zero where a patch does not change it."""
    found = torch.zeros(len(changes), len(changes), dtype=EXACT)
    for i, one in enumerate(changes):
        for j, other in enumerate(changes[: i + 1]):
            if one is not None and other is not None:
                found[i, j] = found[j, i] = one.norm**2 if i == j else inner(one, other)
    return found


def _cosines(products: Tensor) -> tuple[tuple[float | None, ...], ...]:
    sizes = products.diagonal().sqrt()
    shares = (products / (sizes[:, None] * sizes)).clamp(-1, 1).tolist()
    return tuple(tuple(None if value != value else value for value in row) for row in shares)


def _left_out(index: int, patch: EditPatch, base: BaseWeights | None) -> list[LeftOut]:
    """Operations that cannot be compared, and why."""
    found = []
    for operation in patch.operations:
        if isinstance(operation, ModuleOperation | RouterOperation):
            found.append(LeftOut(patch=index, operation=describe_operation(operation), reason="it changes no weight"))
        elif isinstance(operation, Replace) and base is None:
            reason = "what it changes shows only beside the base"
            found.append(LeftOut(patch=index, operation=describe_operation(operation), reason=reason))
    return found
