"""What an audit of a checkpoint found; :mod:`kedit_core.comparing.auditing` makes it and says how."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from attrs import asdict, frozen

from kedit_core.comparing.pairs import FileDifference, Status

Kind: TypeAlias = Literal[
    "elements", "rows", "columns", "low rank", "dense", "signs of zeros", "rounded to another dtype", "NaN or infinity"
]


@frozen(kw_only=True)
class TensorAudit:
    """One parameter that differs, or is not what the patches make of it.

    Attributes:
        place: its name in BASE.
        status: see :class:`~kedit_core.comparing.pairs.Paired`; ``same`` only beside ``explained`` False.
        why: more of it, in words.
        dtype, shape: as EDITED stores it; None where values cannot be compared.
        kind: the fewest numbers that say the change; with ``NaN or infinity`` on either side nothing more is told.
        elements: how many differ in their bits.
        rows, columns: of a matrix, how many (of [out, in]) hold one.
        rank: of a matrix, singular values above what rounding to the dtype makes; None when not asked for.
        rank_is_bound: whether there are more than ``rank``, uncounted.
        norm: Frobenius norm of the change; ``relative``: as a share of BASE's (None where that is zero).
        largest: largest absolute change of an element.
        explained: whether BASE with the expected patches is EDITED here, bit for bit; None when none are expected.
    """

    place: str
    status: Status
    why: str = ""
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    kind: Kind | None = None
    elements: int | None = None
    rows: int | None = None
    columns: int | None = None
    rank: int | None = None
    rank_is_bound: bool = False
    norm: float | None = None
    relative: float | None = None
    largest: float | None = None
    explained: bool | None = None


@frozen(kw_only=True)
class Claim:
    """What the record of a folder that kedit edited says is on it.

    Attributes:
        patches: (id, method) in stack order.
        problem: why the record cannot be believed; None when it is as kedit left it.
    """

    patches: tuple[tuple[str, str], ...] = ()
    problem: str | None = None


@frozen(kw_only=True)
class Audit:
    """What was changed in a checkpoint.

    Attributes:
        architecture: class name of both models.
        compared: how many parameters and buffers were.
        tensors: those that differ.
        config_keys: keys of config.json that do.
        files: files beside the weights that do.
        unread: stored tensors that the model does not read; they were not compared.
        claim: of an EDITED that kedit edited; None for another.
        expected: ids of the patches that EDITED was held against: those given, or those claimed; None without any.
        as_expected: whether its weights are BASE with exactly these, bit for bit; None without any.
    """

    architecture: str
    compared: int
    tensors: tuple[TensorAudit, ...]
    config_keys: tuple[str, ...] = ()
    files: tuple[FileDifference, ...] = ()
    unread: tuple[str, ...] = ()
    claim: Claim | None = None
    expected: tuple[str, ...] | None = None
    as_expected: bool | None = None

    @property
    def unchanged(self) -> bool:
        """Whether nothing differs that was compared: weights, configuration, files."""
        return not (self.config_keys or self.files or any(each.status != "same" for each in self.tensors))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "unchanged": self.unchanged}
