"""What a comparison of patches found; :mod:`kedit_core.comparing.overlaps` makes it and says what the numbers mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from attrs import asdict, frozen


@frozen(kw_only=True)
class Change:
    """What one patch does to one weight.

    Attributes:
        types: the types of its operations there.
        norm: Frobenius norm of the change.
        relative: that as a share of the base weight's norm; None without the base.
        rank: singular values above the tolerance; None when not asked for, or where the weight is no matrix.
    """

    types: tuple[str, ...]
    norm: float
    relative: float | None = None
    rank: int | None = None


@frozen(kw_only=True)
class Overlap:
    """How far two changes share a space, column space or row space.

    Attributes:
        value: 0 (orthogonal) to 1 (one lies in the other).
        by_chance: what random spaces of these ranks would have on average.
        weighted: 0 to 1, directions counted by their energy.
    """

    value: float
    by_chance: float
    weighted: float


@frozen(kw_only=True)
class Pair:
    """Two patches at one weight, by their numbers (from 0).

    Attributes:
        cosine: between the changes; None when one of them is zero.
        columns, rows: overlaps of column spaces and row spaces; None when one change is zero, not taken apart, or of a
            weight that is no matrix.
    """

    first: int
    second: int
    cosine: float | None
    columns: Overlap | None = None
    rows: Overlap | None = None


@frozen(kw_only=True)
class PlaceComparison:
    """One weight.

    Attributes:
        place: its dotted name.
        shape: in [out, in] terms.
        changes: one for each patch; None where it does not change this weight, or nobody can tell how.
        pairs: of the patches that do.
    """

    place: str
    shape: tuple[int, ...]
    changes: tuple[Change | None, ...]
    pairs: tuple[Pair, ...]


@frozen(kw_only=True)
class LeftOut:
    """An operation of patch number ``patch`` that is not part of the comparison, and why."""

    patch: int
    operation: str
    reason: str


@frozen(kw_only=True)
class Comparison:
    """Two or more patches, weight by weight.

    Attributes:
        ids, names: of the patches, in the order given.
        places: every weight that one of them changes.
        norms: of each patch's changes, all weights together.
        cosines: ``[patch][patch]``, all weights together; None where a patch changes no weight.
        left_out: what was not compared.
        notes: what should be known of the numbers.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    places: tuple[PlaceComparison, ...]
    norms: tuple[float, ...]
    cosines: tuple[tuple[float | None, ...], ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> Mapping[str, Mapping[str, Change]]:
        """place -> name of the patch -> what it does there."""
        return {
            each.place: {
                name: change for name, change in zip(self.names, each.changes, strict=True) if change is not None
            }
            for each in self.places
        }

    def mean_overlaps(self, space: str) -> list[list[float | None]]:
        """``[patch][patch]``: overlap of ``columns`` or ``rows``, the mean over the weights that both change.

        1 on the diagonal of a patch that changes something there; None where two share no weight.
        """
        count = len(self.ids)
        found: list[list[list[float]]] = [[[] for _ in range(count)] for _ in range(count)]
        for place in self.places:
            for pair in place.pairs:
                overlap: Overlap | None = getattr(pair, space)
                if overlap is not None:
                    found[pair.first][pair.second].append(overlap.value)
                    found[pair.second][pair.first].append(overlap.value)
            for index, change in enumerate(place.changes):
                if change is not None and change.rank:
                    found[index][index].append(1.0)
        return [[sum(values) / len(values) if values else None for values in row] for row in found]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: ``patches``, ``places`` (with ``changes`` and ``pairs``), ``cosines``, ``left_out``, ``notes``."""
        patches = [
            {"id": patch_id, "name": name, "norm": norm}
            for patch_id, name, norm in zip(self.ids, self.names, self.norms, strict=True)
        ]
        return {
            "patches": patches,
            "places": [
                {
                    "place": each.place,
                    "shape": list(each.shape),
                    "changes": [
                        {"patch": i, **asdict(change), "types": list(change.types)}
                        for i, change in enumerate(each.changes)
                        if change is not None
                    ],
                    "pairs": [asdict(pair) for pair in each.pairs],
                }
                for each in self.places
            ],
            "cosines": [list(row) for row in self.cosines],
            "left_out": [asdict(each) for each in self.left_out],
            "notes": list(self.notes),
        }

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw norms and overlaps into a file whose ending says the format (png, svg, pdf).

        Raises:
            MissingExtraError: matplotlib is not installed.
            InputError: an ending that matplotlib does not write, or nothing to draw.
        """
        from kedit_core.comparing.plot import draw

        draw(self, path)
