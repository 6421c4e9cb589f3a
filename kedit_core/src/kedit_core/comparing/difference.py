"""What a diff of two checkpoints found; :mod:`kedit_core.comparing.diff` makes it."""

from __future__ import annotations

from typing import Any

from attrs import asdict, frozen

from kedit_core.patches.format import EditPatch


@frozen(kw_only=True)
class PlaceDifference:
    """What the patch holds of one parameter.

    Attributes:
        place: its name.
        operation: the type of the operation; ``sparse_delta`` with its axis, ``low_rank_delta`` with its rank.
        axis, rank: of these two.
        exact: whether the base with the operation on it is EDITED bit for bit.
        error: ``|formed - EDITED| / |EDITED - BASE|`` (Frobenius); 0 when exact.
        refused_error: that of the low-rank delta that was asked for and was not taken; None when there was none.
        nbytes: size of the operation's tensors.
    """

    place: str
    operation: str
    axis: str | None = None
    rank: int | None = None
    exact: bool
    error: float
    refused_error: float | None = None
    nbytes: int


@frozen(kw_only=True)
class Difference:
    """A patch that makes BASE into EDITED, and what is to be known of it.

    Attributes:
        patch: the patch.
        places: its operations, one a parameter.
        left_out: parameters that differ too and were not asked for.
        notes: what differs and is in no patch, one sentence each.
    """

    patch: EditPatch
    places: tuple[PlaceDifference, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the patch gives EDITED's weights bit for bit, at every place asked for."""
        return all(each.exact for each in self.places)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "patch": self.patch.id,
            "exact": self.exact,
            "places": [asdict(each) for each in self.places],
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }
