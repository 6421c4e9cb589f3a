"""The equality-constrained update of EMMET; plain linear algebra in float64, no model.

``A = B^-1 K (K^T B^-1 K + epsilon I)^-1`` with ``B = alpha C + mu I`` (Gupta et al. 2024, arXiv 2403.14236, section 4).
With epsilon = 0 the layer gives exactly what is asked for; with mu = 0 it is MEMIT's update for lambda = alpha epsilon.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_methods_locate.factors import Attempt, Form, Solution, checked_keys, solve_checked
from kedit_methods_locate.ridge import Preserved
from kedit_methods_locate.stats.definite import Dense

_JITTER = 1e-10  # of the mean diagonal, for ``exact``
_EQUAL = 1e-10  # what is left of a key, squared and relative, after the others are taken out of it
_NULL = 1e-9  # eigenvalues that belong to such keys
_PART = 1e-3  # what of a null vector makes a fact part of it


class CollidingFactsError(MethodError):
    """Facts whose keys cannot be told apart, so that no update gives each what it asks for.

    Attributes: groups — the facts' numbers, from 0, one tuple for each set of keys that depend on one another.
    """

    def __init__(self, groups: tuple[tuple[int, ...], ...]) -> None:
        named = "; ".join(", ".join(str(i) for i in group) for group in groups)
        super().__init__(
            f"the keys of facts {named} (counted from 0) are equal or depend on one another at this layer, so no exact "
            "update exists; merge or drop all but one of them, or set emmet_lambda above 0 without exact"
        )
        self.groups = groups


def equality_update(
    preserved: Preserved, keys: Tensor, epsilon: float = 0.1, *, ridge_for_one: bool = False, exact: bool = False
) -> Solution:
    """``A = Y (K^T Y + epsilon I)^-1`` with ``Y = B^-1 K``: EMMET's right factor.

    Args:
        preserved: ``B``: ``Preserved.of(statistic.factorised(statistic.share(mu / alpha)), alpha)``, and the keys of
            earlier edits if these are to be kept. These count as they are (MEMIT's 1 is 1 / epsilon here).
        keys: ``[in, n]``, a column for each fact.
        epsilon: added to the diagonal of the facts' matrix; 0 for none.
        ridge_for_one: add it for a single fact too; the authors' code does not.
        exact: no epsilon, but a jitter of 1e-10 of the mean diagonal (none for a single fact).

    Raises:
        CollidingFactsError: without epsilon, keys that are equal or depend on one another.
        MethodError: keys that do not fit, a key without any gain, or a statistic that cannot be solved with.
    """
    wide = checked_keys(keys, preserved)
    count = wide.shape[1]
    solved, alone = preserved.solved(wide)
    facts = _facts(wide, solved)
    diagonal = facts.diagonal()
    if not bool((diagonal > 0).all()):
        raise MethodError(
            f"the key of fact {int(diagonal.argmin())} (counted from 0) is zero or has no gain, so nothing can be "
            "written there; choose another layer or set mom2_ridge"
        )
    if count == 1:
        added = epsilon if ridge_for_one and not exact else 0.0
    else:
        added = _JITTER * float(diagonal.mean()) if exact else epsilon
        if (exact or epsilon == 0) and (groups := colliding(facts)):
            raise CollidingFactsError(groups)

    def by(solve: Callable[[], Tensor | None]) -> Attempt:
        def attempt() -> tuple[Tensor, float] | None:
            found = solve()
            if found is None:
                return None
            matrix = _facts(wide, found)
            matrix.diagonal().add_(added)
            lower, failed = torch.linalg.cholesky_ex(matrix)
            if int(failed):
                return None
            right = torch.cholesky_solve(found.T, lower).T
            left_over = preserved.multiply(right @ matrix) - wide
            return right, float(left_over.norm() / wide.norm())

        return attempt

    def direct() -> Tensor | None:
        whole = Dense.of(preserved.dense())
        return None if whole is None else whole.solve(wide)

    def lu() -> Tensor | None:
        found, failed = torch.linalg.solve_ex(preserved.dense(), wide)
        return None if int(failed) else found

    attempts: list[tuple[Form, Attempt]] = [("fact", by(lambda: solved)), ("direct", by(direct)), ("lu", by(lu))]
    return solve_checked(attempts, (wide * alone).sum(0))


def colliding(facts: Tensor) -> tuple[tuple[int, ...], ...]:
    """Which facts' keys are equal or depend on one another, from their matrix ``K^T B^-1 K`` ``[n, n]``; () for none.

    Two keys count as equal when they differ by less than about 1e-5 of their length.
    """
    scale = facts.diagonal().sqrt()
    relative = facts / torch.outer(scale, scale)
    lower, failed = torch.linalg.cholesky_ex(relative)
    if not int(failed) and float(lower.diagonal().square().min()) > _EQUAL:
        return ()
    values, vectors = torch.linalg.eigh(relative)
    null = vectors[:, values < _NULL]
    together = (null @ null.T).abs() > _PART
    groups: list[tuple[int, ...]] = []
    seen: set[int] = set()
    for start in together.diagonal().nonzero()[:, 0].tolist():
        if start in seen:
            continue
        group, waiting = {start}, [start]
        while waiting:
            near = set(together[waiting.pop()].nonzero()[:, 0].tolist()) - group
            group |= near
            waiting += near
        seen |= group
        groups.append(tuple(sorted(group)))
    return tuple(groups)


def _facts(keys: Tensor, solved: Tensor) -> Tensor:
    matrix = keys.T @ solved
    return (matrix + matrix.T) / 2
