"""AlphaEdit's null space: the directions that ordinary keys hardly use, and the update that stays inside them.

Fang et al. 2025 (arXiv 2410.02355), section 3; plain linear algebra in float64, no model. The update minimises
``|Delta K - E|^2 + |Delta K_p|^2 + L2 |Delta|^2`` over ``Delta = Delta P`` (AlphaEdit sheet, section 3). It is solved
in the coordinates of the null space, where it is a ridge regression: symmetric, of size r, and with ``Delta P = Delta``
by construction.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_core.patches.digests import tensor_digest
from kedit_methods_locate.factors import Factors, Solution, checked_keys
from kedit_methods_locate.hparams.spread import NullSpace as Rule
from kedit_methods_locate.ridge import Preserved, ridge_update
from kedit_methods_locate.stats.definite import Identity, solving_device
from kedit_methods_locate.stats.statistic import Statistic

USUAL = (0.3, 0.98)
"""Shares of the directions between which edits are known to work."""


@frozen(eq=False, slots=False)
class NullSpace:
    """The r eigenvectors of a statistic with the smallest eigenvalues, ``P = U_0 U_0^T``.

    Whichever is smaller is kept, U_0 or the eigenvectors outside it: ``P = I - U_1 U_1^T``.

    Attributes:
        rule, value: how the directions were chosen.
        rank: how many, r.
        basis: ``[in, r]`` float64, U_0; or ``[in, in - r]``, U_1, when ``outside``.
        outside: whether ``basis`` is U_1.
        ceiling: the largest eigenvalue inside; that below the threshold.
        next: the smallest eigenvalue outside; None when there is none.
        lowest, highest: the ends of the spectrum.
        energy: sum of the eigenvalues inside: the mean squared length that ordinary keys have there.
    """

    rule: Rule
    value: float
    rank: int
    basis: Tensor
    outside: bool
    ceiling: float
    next: float | None
    lowest: float
    highest: float
    energy: float

    @classmethod
    def of(
        cls,
        statistic: Statistic,
        rule: Rule,
        value: float,
        *,
        device: torch.device | str | None = None,
        cache: Path | None = None,
    ) -> NullSpace:
        """The null space of a statistic, made once for each rule, value and device, and kept with the statistic.

        Args:
            rule: ``absolute``: eigenvalues below ``value`` (strictly); ``energy``: the largest set of small ones whose
                sum is at most ``value`` of the trace; ``rank``: the ``value`` smallest.
            device, cache: as for :meth:`Statistic.factorised`.

        Raises MethodError when no direction is left.
        """
        where = solving_device(device)
        key = ("null space", rule, value, where)
        return statistic.remember(key, lambda: _null_space(statistic, rule, value, where, cache))

    @property
    def width(self) -> int:
        """Components of a key, m."""
        return int(self.basis.shape[0])

    @property
    def share(self) -> float:
        """r / m."""
        return self.rank / self.width

    @property
    def unusual(self) -> bool:
        """Whether the share is outside 0.3 to 0.98: too few directions to write in, or too few that are protected."""
        return not USUAL[0] <= self.share <= USUAL[1]

    @property
    def size(self) -> int:
        """Coordinates that :meth:`inside` gives: r, or m when only the complement is kept."""
        return self.width if self.outside else self.rank

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the basis: with the statistic's, what a continued sequence must find again."""
        return tensor_digest(self.basis.cpu().contiguous())

    def project(self, vectors: Tensor) -> Tensor:
        """``P vectors``: ``[in, n] -> [in, n]`` float64."""
        wide = vectors.to(self.basis)
        along = self.basis @ (self.basis.T @ wide)
        return wide - along if self.outside else along

    def inside(self, keys: Tensor) -> Tensor:
        """Keys in the null space's coordinates, in which lengths and products are those of ``P keys``: ``[size, n]``.

        Raises MethodError for keys that do not fit or are not finite.
        """
        wide = checked_keys(keys, Identity(self.width, self.basis.device))
        return self.project(wide) if self.outside else self.basis.T @ wide

    def back(self, coordinates: Tensor) -> Tensor:
        """From these coordinates to keys' components: ``[size, n] -> [in, n]``, inside the null space."""
        return self.project(coordinates) if self.outside else self.basis @ coordinates

    def preserved(self, l2: float) -> Preserved:
        """What an update pays for before any edit: ``L2 I``. Raises MethodError when ``l2`` is not above 0."""
        return Preserved.of(Identity(self.size, self.basis.device), l2)

    def record(self) -> dict[str, Any]:
        """For the patch's state: JSON-able."""
        return {
            "rule": self.rule,
            "value": self.value,
            "rank": self.rank,
            "width": self.width,
            "share": self.share,
            "energy": self.energy,
            "eigenvalue_below": self.ceiling,
            "eigenvalue_above": self.next,
            "basis": "complement" if self.outside else "null space",
            "sha256": self.digest,
        }


def nullspace_update(space: NullSpace, preserved: Preserved, keys: Tensor) -> Solution:
    """AlphaEdit's right factor, ``A = U_0 (K' K'^T + S' + L2 I)^-1 K'`` with ``K' = U_0^T K``.

    Args:
        space: where the update may act.
        preserved: ``space.preserved(l2)``, and after each batch its ``with_(space.inside(keys))`` for the batch's keys
            as they are on the edited model.
        keys: ``[in, n]``, a column for each fact.

    Returns: ``right`` ``[in, n]``; its ``gain`` is ``|P k|^2 / L2``. Raises MethodError.
    """
    found = ridge_update(preserved, space.inside(keys))
    return evolve(found, right=space.back(found.right))


def protection(space: NullSpace, factors: Factors, statistic: Statistic) -> tuple[float, float]:
    """``tr(Delta C Delta^T)``, how far ordinary text's outputs move (mean square), and its bound ``tau |Delta|^2``.

    tau is the largest eigenvalue inside the null space (AlphaEdit sheet, section 5).
    """
    # a float32 sum may leave the smallest eigenvalues a little below zero
    return factors.moved(statistic), max(space.ceiling, 0.0) * factors.norm**2


def _null_space(statistic: Statistic, rule: Rule, value: float, device: torch.device, cache: Path | None) -> NullSpace:
    values, vectors = statistic.eigen(device=device, cache=cache)
    spectrum = values.cpu()
    rank, width = _chosen(spectrum, rule, value), len(spectrum)
    lowest, highest = float(spectrum[0]), float(spectrum[-1])
    if not 1 <= rank <= width:
        raise MethodError(
            f"the rule {rule!r} with {value:g} leaves {rank} of {width} directions of the statistic of layer "
            f"{statistic.layer} to write in (eigenvalues {lowest:.3g} to {highest:.3g}); "
            "set nullspace_rule=energy, or another nullspace_threshold, nullspace_energy or nullspace_rank"
        )
    outside = rank > width / 2
    kept = vectors[:, rank:] if outside else vectors[:, :rank]
    return NullSpace(
        rule=rule,
        value=value,
        rank=rank,
        basis=kept.clone(),  # not a view, which would keep all eigenvectors alive
        outside=outside,
        ceiling=float(spectrum[rank - 1]),
        next=float(spectrum[rank]) if rank < width else None,
        lowest=lowest,
        highest=highest,
        energy=float(spectrum[:rank].clamp(min=0).sum()),
    )


def _chosen(spectrum: Tensor, rule: Rule, value: float) -> int:
    """How many of the ascending eigenvalues."""
    if rule == "absolute":
        return int((spectrum < value).sum())
    if rule == "energy":
        # a float32 sum may leave the smallest ones a little below zero
        energy = spectrum.clamp(min=0)
        return int((energy.cumsum(0) <= value * float(energy.sum())).sum())
    if value != int(value):
        raise MethodError(f"nullspace_rank must be a whole number of directions; it is {value}")
    return int(value)
