"""AlphaEdit's null space: acceptance checks 1, 2, 3 (the bound), 4, 5, 6 and 7 (the algebra)."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from locate_tools import a_statistic
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_methods_locate.factors import Factors
from kedit_methods_locate.nullspace import NullSpace, nullspace_update, protection
from kedit_methods_locate.ridge import Preserved
from kedit_methods_locate.stats import Statistic

WIDTH, OUT, L2 = 40, 12, 3.0
# rules that keep U_0, its complement, and everything
RULES = [("absolute", 1.0), ("energy", 0.02), ("rank", 13), ("rank", 33), ("absolute", 1e9)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-8) -> None:
    assert float((found - wanted).norm()) <= tolerance * float(wanted.norm())


def statistic() -> Statistic:
    return a_statistic(0, WIDTH)


def space_of(rule: tuple[str, float], made: Statistic | None = None) -> NullSpace:
    return NullSpace.of(made or statistic(), *rule)  # type: ignore[arg-type]


def projector(space: NullSpace, made: Statistic | None = None) -> tuple[Tensor, Tensor]:
    """P and U_1 by a plain eigendecomposition."""
    _, vectors = torch.linalg.eigh((made or statistic()).matrix)
    inside = vectors[:, : space.rank]
    return inside @ inside.T, vectors[:, space.rank :]


def original(space: NullSpace, keys: Tensor, past: Tensor) -> Tensor:
    """The authors' form, transposed as here: ``(P (K K^T + S) + L2 I)^-1 P K``, by LU."""
    p, _ = projector(space)
    whole = p @ (keys @ keys.T + past @ past.T) + L2 * torch.eye(WIDTH, dtype=torch.float64)
    return torch.linalg.solve(whole, p @ keys)


def updated(space: NullSpace, keys: Tensor, past: Tensor | None = None) -> Tensor:
    preserved = space.preserved(L2)
    if past is not None and past.shape[1]:
        preserved = preserved.with_(space.inside(past))
    return nullspace_update(space, preserved, keys).right


# ------------------------------------------------------------------ 1
@pytest.mark.parametrize("rule", RULES)
def test_the_projector(rule: tuple[str, float]) -> None:
    space = space_of(rule)
    p = space.project(torch.eye(WIDTH, dtype=torch.float64))
    close(p, p.T, 1e-12)
    close(p @ p, p, 1e-12)
    assert float(p.trace()) == pytest.approx(space.rank, rel=1e-12)
    close(p, projector(space)[0], 1e-10)
    assert space.basis.shape[1] <= WIDTH / 2, "the smaller half is kept"
    assert space.basis.shape[1] == (WIDTH - space.rank if space.outside else space.rank)


# ------------------------------------------------------------------ 2, 3
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("past", [0, 30])
def test_the_update_stays_inside_and_the_bound_holds(rule: tuple[str, float], past: int) -> None:
    space = space_of(rule)
    p, protected = projector(space)
    right = updated(space, normal(WIDTH, 6), normal(WIDTH, past, seed=1))
    made = Factors(right=right, left=normal(OUT, 6, seed=2))
    delta = made.delta()
    close(delta @ p, delta, 1e-12)
    assert float((delta @ protected).norm()) < 1e-10 * float(delta.norm())
    moved, bound = protection(space, made, statistic())
    assert moved == pytest.approx(float(torch.trace(delta @ statistic().matrix @ delta.T)), rel=1e-9)
    assert bound == pytest.approx(space.ceiling * float(delta.norm()) ** 2, rel=1e-9)
    assert moved <= bound * (1 + 1e-9)
    if rule[0] == "absolute":
        assert bound <= rule[1] * float(delta.norm()) ** 2
        assert space.ceiling < rule[1]


# ------------------------------------------------------------------ 4
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 5, 30, 90])
@pytest.mark.parametrize("past", [0, 4, 90])
def test_all_forms_agree(rule: tuple[str, float], count: int, past: int) -> None:
    """The number of facts and of earlier ones chooses between Woodbury and a Cholesky factor of size r."""
    space = space_of(rule)
    keys, earlier = normal(WIDTH, count), normal(WIDTH, past, seed=1)
    found = updated(space, keys, earlier)
    close(found, original(space, keys, earlier))
    # the sheet's reduced form
    _, vectors = torch.linalg.eigh(statistic().matrix)
    inside = vectors[:, : space.rank]
    near, before = inside.T @ keys, inside.T @ earlier
    whole = near @ near.T + before @ before.T + L2 * torch.eye(space.rank, dtype=torch.float64)
    close(found, inside @ torch.linalg.solve(whole, near))


def test_a_sequence_is_the_same_as_all_its_keys_at_once() -> None:
    space = space_of(("energy", 0.02))
    keys = normal(WIDTH, 60, seed=3)
    preserved = space.preserved(L2)
    for part in keys.split(5, 1):
        preserved = preserved.with_(space.inside(part))
    assert preserved.count == 60
    close(nullspace_update(space, preserved, normal(WIDTH, 4)).right, original(space, normal(WIDTH, 4), keys))


# ------------------------------------------------------------------ 5
def test_all_directions_make_it_a_ridge_regression() -> None:
    space = space_of(("absolute", 1e9))
    assert space.rank == WIDTH
    assert space.next is None
    assert space.unusual
    keys = normal(WIDTH, 6)
    whole = keys @ keys.T + L2 * torch.eye(WIDTH, dtype=torch.float64)
    close(updated(space, keys), torch.linalg.solve(whole, keys))


@pytest.mark.parametrize("rule", [("absolute", 1e-9), ("energy", 1e-9), ("rank", 0), ("rank", WIDTH + 1)])
def test_no_direction_is_refused_with_the_spectrum(rule: tuple[str, float]) -> None:
    values = torch.linalg.eigvalsh(statistic().matrix)
    with pytest.raises(MethodError, match=rf"eigenvalues {float(values[0]):.3g} to {float(values[-1]):.3g}"):
        space_of(rule)


def test_a_rank_is_a_whole_number() -> None:
    with pytest.raises(MethodError, match="whole number"):
        space_of(("rank", 3.5))


# ------------------------------------------------------------------ 6
def test_an_exact_null_space_protects_exactly() -> None:
    """Ordinary keys in 10 of 40 directions: they are not moved at all."""
    ordinary = normal(WIDTH, 10, seed=5) @ normal(10, 500, seed=6)
    made = Statistic.from_sum(0, ordinary @ ordinary.T, 500)
    space = NullSpace.of(made, "energy", 1e-5)
    assert space.rank == 30
    right = nullspace_update(space, space.preserved(L2), normal(WIDTH, 6)).right
    delta = Factors(right=right, left=normal(OUT, 6, seed=2)).delta()
    assert float((delta @ ordinary).norm()) < 1e-6 * float(delta.norm() * ordinary.norm())
    assert float(delta.norm()) > 0.1


# ------------------------------------------------------------------ 7
def write(space: NullSpace, preserved: Preserved, weight: Tensor, keys: Tensor, values: Tensor) -> Factors:
    return Factors.of(values - weight @ keys, nullspace_update(space, preserved, keys).right)


def test_a_second_batch() -> None:
    """The same again: little is left to do. Others: the first ones' values move less with their keys kept."""
    space = space_of(("energy", 0.2))
    weight, keys, values = normal(OUT, WIDTH), 3 * normal(WIDTH, 5, seed=1), normal(OUT, 5, seed=2)
    start = space.preserved(L2)
    first = write(space, start, weight, keys, values)
    edited = weight + first.delta()
    grown = start.with_(space.inside(keys))
    again = write(space, grown, edited, keys, values)
    assert again.norm < 0.1 * first.norm
    others, wanted = 3 * normal(WIDTH, 5, seed=3), normal(OUT, 5, seed=4)
    held = write(space, grown, edited, others, wanted)
    free = write(space, start, edited, others, wanted)
    assert float((held.delta() @ keys).norm()) < 0.5 * float((free.delta() @ keys).norm())
    assert float((values - (edited + held.delta()) @ keys).norm()) < float((values - weight @ keys).norm())


# ------------------------------------------------------------------ the rules
@given(energy=st.floats(0.001, 0.999))
def test_the_energy_rule_takes_the_largest_set(energy: float) -> None:
    values = torch.linalg.eigvalsh(statistic().matrix)
    total = float(values.sum())
    if float(values[0]) > energy * total:
        return
    rank = space_of(("energy", energy)).rank
    assert float(values[:rank].sum()) <= energy * total * (1 + 1e-12)
    assert rank == WIDTH or float(values[: rank + 1].sum()) > energy * total * (1 - 1e-12)


def test_the_threshold_is_strict_and_its_neighbours_are_told() -> None:
    made = Statistic(0, torch.diag(torch.tensor([4.0, 1.0, 3.0, 2.0])), 1)
    space = NullSpace.of(made, "absolute", 3.0)
    assert (space.rank, space.ceiling, space.next) == (2, 2.0, 3.0)
    assert (space.lowest, space.highest) == (1.0, 4.0)
    record = space.record()
    assert (record["eigenvalue_below"], record["eigenvalue_above"], record["share"]) == (2.0, 3.0, 0.5)
    assert json.loads(json.dumps(record)) == record
    assert not space.unusual
    assert NullSpace.of(made, "rank", 1).unusual
    assert NullSpace.of(made, "rank", 4).unusual


def test_slightly_negative_eigenvalues_count_as_nothing() -> None:
    made = Statistic(0, torch.diag(torch.tensor([-1e-3, 1e-3, 1.0, 9.0])), 1)
    assert NullSpace.of(made, "energy", 1e-5).rank == 1
    assert NullSpace.of(made, "energy", 0.15).rank == 3


def test_it_is_made_once_and_has_an_identity() -> None:
    made = statistic()
    space = NullSpace.of(made, "rank", 13)
    assert NullSpace.of(made, "rank", 13) is space
    assert NullSpace.of(made, "rank", 14).digest != space.digest
    assert NullSpace.of(statistic(), "rank", 13).digest == space.digest
    assert space.record()["sha256"] == space.digest


# ------------------------------------------------------------------ gain
@pytest.mark.parametrize("rule", RULES)
def test_a_lone_fact_gets_its_share(rule: tuple[str, float]) -> None:
    space = space_of(rule)
    key, left = normal(WIDTH, 1), normal(OUT, 1, seed=1)
    gain = (projector(space)[0] @ key).square().sum(0)
    found = nullspace_update(space, space.preserved(L2), key)
    close(found.gain, gain / L2, 1e-10)
    close(Factors.of(left, found.right).delta() @ key, left * gain / (gain + L2), 1e-10)
    kept = nullspace_update(space, space.preserved(L2).with_(space.inside(key)), key)
    close(kept.gain, gain / L2, 1e-10)  # earlier edits are no part of it


def test_keys_that_do_not_fit() -> None:
    space = space_of(("rank", 13))
    for keys in (normal(WIDTH - 1, 2), normal(WIDTH), normal(WIDTH, 2) / 0):
        with pytest.raises(MethodError, match="the keys"):
            space.inside(keys)
    with pytest.raises(MethodError, match="above 0"):
        space.preserved(0.0)
