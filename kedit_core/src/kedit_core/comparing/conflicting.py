"""Patches that are to stand on one model, held against one another: the same weights, modules, routers and facts.

Nothing is run, so this says where patches meet, not what the model then answers; only an evaluation shows that.

At a weight that two patches change, by the measures of :mod:`kedit_core.comparing.overlaps` (from ``MEETING`` on they
count): ``add up`` (cosine of the changes), ``cancel`` (negative cosine), ``share inputs`` (weighted overlap of row
spaces: both answer to the same inputs with something else), ``share outputs`` (column spaces), ``lie apart``. A
``replace`` takes the place of the base below all deltas: of two, the higher stays (``replaced``); deltas go on top
of it (``on a replaced weight``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from kedit_core.comparing.changes import BaseWeights, operations_at
from kedit_core.comparing.comparison import Pair
from kedit_core.comparing.conflicts_facts import compare_facts
from kedit_core.comparing.conflicts_report import ConflictReport, Effect, Meeting, PatchPair, WeightMeeting
from kedit_core.comparing.overlaps import compare
from kedit_core.errors import InputError, StackOrderError
from kedit_core.patches.format import EditPatch
from kedit_core.patches.operations import ModuleOperation, Replace, RouterOperation
from kedit_core.stacks.file import check_stack_order

if TYPE_CHECKING:
    from kedit_core.editing.progress import Progress

__all__ = ["ConflictReport", "PatchPair", "conflicts"]

MEETING = 0.1  # a convention, not a law: below it a cosine or an overlap is taken for none


def conflicts(
    patches: Sequence[EditPatch],
    base: BaseWeights | None = None,
    *,
    names: Sequence[str] | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> ConflictReport:
    """Where two or more patches for one model meet, pair by pair: see this module, and ``conflicts_facts`` for facts.

    Args:
        patches: in the order in which they are to be put on.
        base: place -> the base weight, as for :func:`kedit_core.comparing.overlaps.compare`.
        names: what to call them; the beginnings of their ids unless given.
        quick: leave out overlaps that need a dense SVD.
        progress: called as ``progress(text, total=places)``.

    Raises:
        InputError: fewer than two patches, the same one twice, or patches for different bases.
        BaseMismatchError: ``base`` is not what a patch was made for.
    """
    comparison = compare(patches, base, names=names, quick=quick, progress=progress)
    if len(set(comparison.ids)) != len(patches):
        raise InputError("the same patch was given twice; a patch is on a stack once, so give each once")
    notes = list(_check_bases(patches, comparison.names))
    met = {each.place: {(pair.first, pair.second): pair for pair in each.pairs} for each in comparison.places}
    pairs = tuple(
        PatchPair(
            first=i,
            second=j,
            names=(comparison.names[i], comparison.names[j]),
            facts=compare_facts(patches[i], patches[j]),
            weights=tuple(_weights(met, patches, i, j)),
            modules=tuple(_modules(patches[i], patches[j])),
            routers=_routers(patches[i], patches[j]),
            parent=patches[i].id in patches[j].parents,
            upside_down=patches[j].id in patches[i].parents,
        )
        for i, j in combinations(range(len(patches)), 2)
    )
    return ConflictReport(
        ids=comparison.ids,
        names=comparison.names,
        pairs=pairs,
        order=_order(patches),
        notes=tuple(dict.fromkeys((*notes, *comparison.notes))),
    )


def _order(patches: Sequence[EditPatch]) -> str | None:
    """Why the patches cannot be put on in the order given, or None."""
    try:
        check_stack_order(patches)
    except StackOrderError as error:
        return str(error)
    return None


def _check_bases(patches: Sequence[EditPatch], names: Sequence[str]) -> Iterator[str]:
    """Notes for patches that may or may not be for one base; InputError for those that are not."""
    for (name, one), (other_name, other) in combinations(zip(names, patches, strict=True), 2):
        compared = False
        for place in one.base.tensors.keys() & other.base.tensors.keys():
            mine, theirs = one.base.tensors[place], other.base.tensors[place]
            dtypes = mine.sha256.keys() & theirs.sha256.keys()
            compared = compared or bool(dtypes)
            if (mine.shape, mine.layout) != (theirs.shape, theirs.layout) or any(
                mine.sha256[dtype] != theirs.sha256[dtype] for dtype in dtypes
            ):
                raise InputError(
                    f"{name} and {other_name} were made for different bases (they differ at {place}), so they cannot "
                    "be on one model; give patches for the same base"
                )
        mine_named, theirs_named = one.base.name, other.base.name
        if not compared and mine_named != theirs_named and mine_named and theirs_named:
            yield (
                f"{name} was made for {mine_named} and {other_name} for {theirs_named}; they share no weight, so "
                "whether these are the same model cannot be told"
            )


def _weights(
    met: Mapping[str, Mapping[tuple[int, int], Pair]], patches: Sequence[EditPatch], i: int, j: int
) -> Iterator[WeightMeeting]:
    for place, pairs in met.items():
        mine, theirs = operations_at(patches[i], place), operations_at(patches[j], place)
        if not mine or not theirs:
            continue
        pair = pairs.get((i, j))
        replaced = [any(isinstance(each, Replace) for each in operations) for operations in (mine, theirs)]
        effect: Effect | None = "replaced" if all(replaced) else "on a replaced weight" if any(replaced) else None
        yield WeightMeeting(
            place=place,
            effect=effect or _effect(pair),
            cosine=None if pair is None else pair.cosine,
            columns=None if pair is None else pair.columns,
            rows=None if pair is None else pair.rows,
        )


def _effect(pair: Pair | None) -> Effect:
    """The first that holds of those this module lists."""
    if pair is None or pair.cosine is None:
        return "lie apart"  # one of the changes is zero
    if abs(pair.cosine) >= MEETING:
        return "add up" if pair.cosine > 0 else "cancel"
    if pair.rows is not None and pair.rows.weighted >= MEETING:
        return "share inputs"
    if pair.columns is not None and pair.columns.weighted >= MEETING:
        return "share outputs"
    return "lie apart" if pair.rows is not None else "not measured"


def _modules(first: EditPatch, second: EditPatch) -> Iterator[Meeting]:
    """Modules where both act, or where one acts within the other's."""
    mine, theirs = _module_places(first), _module_places(second)
    for place, kind in mine:
        for other, other_kind in theirs:
            if place == other or place.startswith(f"{other}.") or other.startswith(f"{place}."):
                yield Meeting(places=(place, other), kinds=(kind, other_kind))


def _module_places(patch: EditPatch) -> list[tuple[str, str]]:
    found = [
        (place, operation.kind)
        for operation in patch.operations
        if isinstance(operation, ModuleOperation)
        for place in operation.places
    ]
    return list(dict.fromkeys(found))


def _routers(first: EditPatch, second: EditPatch) -> tuple[str, str] | None:
    """The kinds of the patches' routers, when both have some."""
    kinds = [
        ", ".join(dict.fromkeys(each.kind for each in patch.operations if isinstance(each, RouterOperation)))
        for patch in (first, second)
    ]
    return (kinds[0], kinds[1]) if all(kinds) else None
