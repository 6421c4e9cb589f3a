"""The ridge update and what it preserves: acceptance checks 1, 2, 4, 5 and 8 of MEMIT, and long sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from locate_tools import a_statistic
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_methods_locate.factors import Factors
from kedit_methods_locate.ridge import Preserved, ridge_update
from kedit_methods_locate.stats import Definite, Factorised, Identity, Statistic

WIDTH, OUT, LAMBDA = 40, 12, 25.0


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-8) -> None:
    assert float((found - wanted).norm()) <= tolerance * float(wanted.norm())


def statistic(width: int = WIDTH) -> Statistic:
    return a_statistic(0, width)


def plain(matrix: Tensor, keys: Tensor) -> Tensor:
    """``(B + K K^T)^-1 K`` by an explicit inverse."""
    return torch.linalg.inv(matrix + keys @ keys.T) @ keys


def preserved(weight: float = LAMBDA, past: Tensor | None = None, width: int = WIDTH) -> Preserved:
    start = Preserved.of(statistic(width).factorised(), weight)
    return start if past is None else start.with_(past)


# ------------------------------------------------------------------ 1
@pytest.mark.parametrize("count", [1, 5, WIDTH // 2, WIDTH // 2 + 1, WIDTH, 3 * WIDTH])
@pytest.mark.parametrize("past", [0, 7, 3 * WIDTH])
def test_the_equation_holds_and_all_forms_agree(count: int, past: int) -> None:
    keys, earlier = normal(WIDTH, count), normal(WIDTH, past, seed=1)
    found = ridge_update(preserved(past=earlier if past else None), keys)
    matrix = LAMBDA * statistic().matrix + earlier @ earlier.T
    assert found.form == ("fact" if count <= WIDTH / 2 else "direct")
    assert found.accurate
    close((matrix + keys @ keys.T) @ found.right, keys, 1e-6)
    close(found.right, plain(matrix, keys))


@given(seed=st.integers(0, 1000), width=st.integers(4, 24), weight=st.floats(0.1, 1e5), data=st.data())
def test_batch_is_the_closed_form(seed: int, width: int, weight: float, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 2 * width))
    keys = normal(width, count, seed=seed)
    made = a_statistic(0, width, seed)
    close(ridge_update(Preserved.of(made.factorised(), weight), keys).right, plain(weight * made.matrix, keys))


def test_without_a_statistic() -> None:
    keys = normal(WIDTH, 6)
    close(ridge_update(Preserved.of(Identity(WIDTH), 3.0), keys).right,
          plain(3 * torch.eye(WIDTH, dtype=torch.float64), keys))  # fmt: skip


def test_the_ridge_of_a_singular_statistic_is_part_of_the_matrix() -> None:
    keys = normal(WIDTH, 9, seed=3)
    total = keys @ keys.T
    factor = Statistic.from_sum(0, total, 9).factorised()
    assert factor.ridge > 0
    matrix = factor.dense()
    close(matrix @ normal(WIDTH, 2), factor.multiply(normal(WIDTH, 2)))
    close(factor.lower @ factor.lower.T, matrix)
    found = ridge_update(Preserved.of(factor, LAMBDA), normal(WIDTH, 3))
    close((LAMBDA * matrix + normal(WIDTH, 3) @ normal(WIDTH, 3).T) @ found.right, normal(WIDTH, 3), 1e-6)


# ------------------------------------------------------------------ 2
def test_what_is_achieved() -> None:
    keys, left = normal(WIDTH, 5), normal(OUT, 5, seed=2)
    inside = keys.T @ torch.linalg.inv(statistic().matrix) @ keys
    one = torch.eye(5, dtype=torch.float64)
    for weight in (0.5, LAMBDA, 1e4):
        found = ridge_update(preserved(weight), keys)
        effect = Factors.of(left, found.right).delta() @ keys
        close(effect, left @ (one - weight * torch.linalg.inv(weight * one + inside)), 1e-6)
        close(found.gain, inside.diagonal() / weight)
        close(found.share, inside.diagonal() / (inside.diagonal() + weight))
    close(Factors.of(left, ridge_update(preserved(1e-9), keys).right).delta() @ keys, left, 1e-6)
    assert Factors.of(left, ridge_update(preserved(1e12), keys).right).norm < 1e-6 * float(left.norm())


def test_a_lone_fact_gets_its_share() -> None:
    """3, the linear part: with one layer and one fact the residual falls to lambda / (g + lambda)."""
    key, left = normal(WIDTH, 1), normal(OUT, 1, seed=2)
    found = ridge_update(preserved(), key)
    close(Factors.of(left, found.right).delta() @ key, left * found.share, 1e-10)


# ------------------------------------------------------------------ 4
def test_rank_and_order_of_the_facts() -> None:
    keys, left = normal(WIDTH, 6), normal(OUT, 6, seed=2)
    made = Factors.of(left, ridge_update(preserved(), keys).right)
    values = torch.linalg.svdvals(made.delta())
    assert int((values > 1e-10 * values[0]).sum()) == made.left.shape[1] == 6
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    other = Factors.of(left[:, order], ridge_update(preserved(), keys[:, order]).right)
    close(other.right, made.right[:, order])
    close(other.delta(), made.delta())


def test_equal_keys_stay_finite() -> None:
    keys = normal(WIDTH, 3)[:, [0, 1, 0, 2, 0]]
    found = ridge_update(preserved(), keys)
    assert found.accurate
    assert found.form == "fact"
    close(found.right, plain(LAMBDA * statistic().matrix, keys))
    close(found.right[:, 0], found.right[:, 4])


# ------------------------------------------------------------------ 8
@given(seed=st.integers(0, 1000))
def test_no_other_update_with_the_same_effect_moves_text_less(seed: int) -> None:
    keys, left = normal(WIDTH, 4, seed=seed), normal(OUT, 4, seed=seed + 1)
    made = Factors.of(left, ridge_update(preserved(), keys).right)
    delta = made.delta()

    def moved(matrix: Tensor) -> float:
        return float(torch.trace(matrix @ statistic().matrix @ matrix.T))

    assert made.moved(statistic()) == pytest.approx(moved(delta), rel=1e-9)
    for size in (1e-3, 1.0):
        other = normal(OUT, WIDTH, seed=seed + 2)
        other = size * (other - other @ keys @ torch.linalg.pinv(keys))
        assert float((other @ keys).norm()) < 1e-9
        assert moved(delta + other) >= moved(delta) * (1 - 1e-9)


# ------------------------------------------------------------------ earlier edits
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), repeat=st.booleans(), weight=st.floats(0.2, 5))
def test_growing_is_the_same_as_all_at_once(sizes: list[int], repeat: bool, weight: float) -> None:
    """Repeated keys make the worst of it: what is left of their gain is a difference of near numbers."""
    keys, right = normal(16, sum(sizes), seed=len(sizes)), normal(16, 3, seed=99)
    if repeat:
        keys = keys[:, [i % 3 for i in range(sum(sizes))]]
    start = preserved(2.0, width=16)
    grown = start
    for part in keys.split(sizes, 1):
        grown = grown.with_(part, weight)
    matrix = 2 * statistic(16).matrix + weight * keys @ keys.T
    assert grown.count == sum(sizes)
    close(grown.dense(), matrix, 1e-10)
    close(grown.multiply(right), matrix @ right, 1e-10)
    close(grown.solve(right), torch.linalg.solve(matrix, right))
    close(ridge_update(grown, right).right, plain(matrix, right))
    close(ridge_update(grown, right).gain, ridge_update(start, right).gain)
    assert start.count == 0


def test_a_thousand_edits_one_by_one_stay_exact() -> None:
    keys = normal(30, 1000, seed=4) + 3.0  # all share a direction
    grown = preserved(2.0, width=30)
    for i in range(1000):
        grown = grown.with_(keys[:, i : i + 1])
    new = normal(30, 2)
    found = ridge_update(grown, new)
    close(found.right, plain(2 * statistic(30).matrix + keys @ keys.T, new))


def test_an_edit_of_a_sequence_factorises_only_its_own_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    cholesky = torch.linalg.cholesky_ex

    def counted(matrix: Tensor, **kwargs: Any) -> Any:
        sizes.append(len(matrix))
        return cholesky(matrix, **kwargs)

    grown = preserved()
    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted)
    for turn in range(4):
        ridge_update(grown, normal(WIDTH, 5, seed=turn))
        grown = grown.with_(normal(WIDTH, 5, seed=turn))
    assert sizes == [5] * 8
    grown.with_(normal(WIDTH, 1))
    assert sizes == [5] * 8 + [WIDTH], "one whole factor after half the width"


def test_an_earlier_state_gives_the_same_bits_again() -> None:
    """AlphaEdit's check 8, the state: undoing is to go on from the object that was there before."""
    start, keys, left = preserved(past=normal(WIDTH, 6)), normal(WIDTH, 3, seed=1), normal(OUT, 3, seed=2)
    before = Factors.of(left, ridge_update(start, keys).right).delta()
    matrix = start.dense()
    start.with_(keys).with_(normal(WIDTH, 30, seed=3))
    assert torch.equal(start.dense(), matrix)
    assert torch.equal(Factors.of(left, ridge_update(start, keys).right).delta(), before)


def test_earlier_facts_are_kept() -> None:
    first, second = normal(WIDTH, 4), normal(WIDTH, 4, seed=1)
    left = normal(OUT, 4, seed=2)
    free = Factors.of(left, ridge_update(preserved(), second).right).delta() @ first
    held = Factors.of(left, ridge_update(preserved(past=first), second).right).delta() @ first
    assert float(held.norm()) < 0.5 * float(free.norm())


# ------------------------------------------------------------------ when a form fails
def broken(lower: float, total: Tensor | None = None) -> Factorised:
    """A factor that is not that of its matrix."""
    factor = statistic().factorised()
    return evolve(factor, lower=factor.lower * lower, total=factor.total if total is None else total)


def test_a_bad_factor_is_noticed_and_the_whole_matrix_is_solved() -> None:
    keys = normal(WIDTH, 3)
    found = ridge_update(Preserved.of(broken(1.001), LAMBDA), keys)
    assert found.form == "direct"
    assert found.tried == ("fact", "direct")
    assert found.record()["tried"] == ["fact", "direct"]
    close(found.right, plain(LAMBDA * statistic().matrix, keys))


def test_an_indefinite_matrix_is_solved_by_lu() -> None:
    total = statistic().sum.clone()
    total[0, 0] = -total[0, 0]
    keys = normal(WIDTH, 3)
    found = ridge_update(Preserved.of(broken(1.0, total), LAMBDA), keys)
    assert found.tried == ("fact", "direct", "lu")
    matrix = total.double() / statistic().count
    close(found.right, torch.linalg.solve(LAMBDA * matrix + keys @ keys.T, keys))


class Unformed(Identity):
    """An identity that is solved with an error of 1 in 1000, and cannot be formed whole."""

    def solve(self, right: Tensor) -> Tensor:
        return super().solve(right) * 1.001

    def dense(self) -> Tensor:
        return super().dense() * float("nan")


def test_what_is_left_inaccurate_is_told() -> None:
    found = ridge_update(Preserved.of(Unformed(WIDTH), LAMBDA), normal(WIDTH, 3))
    assert found.tried == ("fact", "direct", "lu")
    assert found.form == "fact"
    assert not found.accurate
    assert 1e-6 < found.record()["residual"] < 1e-2


def test_nothing_solvable_is_refused() -> None:
    nothing = broken(1.0, torch.full((WIDTH, WIDTH), float("nan")))
    with pytest.raises(MethodError, match="mom2_ridge"):
        ridge_update(Preserved.of(nothing, LAMBDA), normal(WIDTH, 3))
    with pytest.raises(MethodError, match="mom2_ridge"):
        Preserved.of(nothing, LAMBDA).with_(normal(WIDTH, WIDTH))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_preserve_nothing(weight: float) -> None:
    with pytest.raises(MethodError, match="above 0"):
        Preserved.of(Identity(4), weight)
    with pytest.raises(MethodError, match="above 0"):
        Preserved.of(Identity(4)).with_(normal(4, 1), weight)


@pytest.mark.parametrize("keys", [normal(WIDTH), normal(WIDTH - 1, 2), normal(WIDTH, 0), normal(WIDTH, 2) / 0])
def test_keys_that_do_not_fit(keys: Tensor) -> None:
    for use in (preserved().with_, lambda k: ridge_update(preserved(), k)):
        with pytest.raises(MethodError, match="the keys"):
            use(keys)


def test_residuals_that_do_not_fit() -> None:
    found = ridge_update(preserved(), normal(WIDTH, 3))
    for left in (normal(OUT, 2), normal(3)):
        with pytest.raises(MethodError, match="each of 3 facts"):
            Factors.of(left, found.right)
    for left, right in ((normal(OUT, 3) / 0, found.right), (normal(OUT, 3), found.right / 0)):
        with pytest.raises(MethodError, match="the update of here is not finite"):
            Factors.of(left, right, "the update of here")


# ------------------------------------------------------------------ the small things
def test_norms() -> None:
    made = Factors(right=normal(WIDTH, 3), left=normal(OUT, 3, seed=1))
    assert made.norm == pytest.approx(float(made.delta().norm()), rel=1e-12)
    wanted = float(torch.trace(made.delta() @ statistic().matrix @ made.delta().T))
    assert made.moved(statistic()) == pytest.approx(wanted, rel=1e-9)


def test_half_precision_keys_are_solved_in_float64() -> None:
    keys = normal(WIDTH, 3).to(torch.bfloat16)
    found = ridge_update(preserved(), keys)
    assert found.right.dtype == torch.float64
    assert torch.equal(found.right, ridge_update(preserved(), keys.double()).right)


def test_everything_preserved_is_definite() -> None:
    """The parts fit one another: any of them can be solved with, multiplied, and formed whole."""
    factor = statistic().factorised()
    parts: list[Definite] = [Identity(WIDTH), factor, preserved(), preserved(past=normal(WIDTH, 30))]
    right = normal(WIDTH, 4)
    for part in parts:
        close(part.multiply(part.solve(right)), right)
        close(part.multiply(right), part.dense() @ right)
        assert part.width == WIDTH
        part.dense().zero_()
        close(part.multiply(part.solve(right)), right)  # what dense() gives is a copy


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_factors_device_solves() -> None:
    factor = statistic().factorised(device="cuda")
    assert factor.lower.is_cuda
    keys = normal(WIDTH, 3)
    found = ridge_update(Preserved.of(factor, LAMBDA).with_(normal(WIDTH, 5, seed=1)), keys.cuda())
    assert found.right.is_cuda
    close(found.right.cpu(), ridge_update(preserved(past=normal(WIDTH, 5, seed=1)), keys).right)
