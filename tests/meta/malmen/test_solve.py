"""The ridge regression of MALMEN and its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kedit_methods_meta.malmen.solve import Normal, ridge_of

WIDTH, OUT = 9, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(keys: Tensor, values: Tensor, ridge: float | Tensor) -> Tensor:
    return torch.linalg.solve(keys.T @ keys + ridge * torch.eye(keys.shape[1], dtype=keys.dtype), keys.T @ values)


@pytest.mark.parametrize("rows", [1, 5, 9, 30])
def test_3_primal_and_dual_agree(rows: int) -> None:
    """Acceptance check 3: whichever form is taken, it is the plain solution; in float32 to 1e-5."""
    keys, values = random(rows, WIDTH), random(rows, OUT, seed=1)
    wanted = plain(keys, values, 0.7)
    normal = Normal(keys, 0.7)
    assert normal.dual is (rows < WIDTH)
    torch.testing.assert_close(normal.shift(values), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(normal.spread().T @ values, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(normal.spread(slice(0, 1)), normal.spread()[:1], rtol=1e-10, atol=1e-12)
    single = Normal(keys.float(), 0.7).shift(values.float())
    torch.testing.assert_close(single.double(), wanted, rtol=1e-5, atol=1e-5)


def test_1_a_large_ridge_shifts_nothing() -> None:
    """Acceptance check 1, second half."""
    keys, values = random(5, WIDTH), random(5, OUT, seed=1)
    sizes = [float(Normal(keys, ridge).shift(values).norm()) for ridge in (1.0, 1e3, 1e6, 1e9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-7


def test_2_without_a_ridge_few_keys_are_met_exactly() -> None:
    """Acceptance check 2: ``K S = D``."""
    keys, values = random(5, WIDTH), random(5, OUT, seed=1)
    torch.testing.assert_close(keys @ Normal(keys, 1e-12).shift(values), values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [5, 30])
def test_4_gradients_are_autograds(rows: int) -> None:
    """Acceptance check 4: with respect to the wanted changes and to the ridge's logarithm."""
    keys, gradient = random(rows, WIDTH), random(WIDTH, OUT, seed=2)
    values = random(rows, OUT, seed=1).requires_grad_(True)
    log_ridge = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    (plain(keys, values, log_ridge.exp()) * gradient).sum().backward()
    normal = Normal(keys, float(ridge_of(log_ridge.detach())))
    torch.testing.assert_close(normal.pulled(gradient), values.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(normal.pulled_ridge(gradient, values.detach()), log_ridge.grad, rtol=1e-9, atol=1e-12)


def test_6_twice_the_edits_with_twice_the_ridge() -> None:
    """Acceptance check 6: the same shift."""
    keys, values = random(5, WIDTH), random(5, OUT, seed=1)
    twice = Normal(torch.cat([keys, keys]), 1.4).shift(torch.cat([values, values]))
    torch.testing.assert_close(twice, Normal(keys, 0.7).shift(values), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 3, 30])
def test_8_the_rank_is_that_of_the_fewest(rows: int) -> None:
    """Acceptance check 8."""
    shift = Normal(random(rows, WIDTH), 0.7).shift(random(rows, OUT, seed=1))
    assert int(torch.linalg.matrix_rank(shift)) == min(rows, WIDTH, OUT)


def test_a_matrix_that_rounding_made_indefinite_is_solved_all_the_same() -> None:
    keys = 1e4 * torch.ones(6, WIDTH)  # float32: a Gram matrix of rank 1, and a ridge far below its rounding
    shift = Normal(keys, 1e-9).shift(torch.ones(6, OUT))
    assert bool(torch.isfinite(shift).all())
    torch.testing.assert_close(keys @ shift, torch.ones(6, OUT), rtol=1e-2, atol=1e-2)


def test_sums_of_very_many_keys_are_taken_in_float64() -> None:
    """In portions; what comes out is in the keys' own precision."""
    keys, values = random(100_003, 3).float() + 30, random(100_003, 2, seed=1).float()
    wanted = plain(keys.double(), values.double(), 0.7)
    normal = Normal(keys, 0.7)
    shift, gradient = normal.shift(values), random(3, 2, seed=2)
    assert shift.dtype == torch.float32
    torch.testing.assert_close(shift.double(), wanted, rtol=1e-5, atol=1e-7)
    # which float32 alone does not give
    single = torch.linalg.solve(keys.T @ keys + 0.7 * torch.eye(3), keys.T @ values)
    assert float((single.double() - wanted).abs().max()) > 10 * float((shift.double() - wanted).abs().max())
    pulled = normal.pulled(gradient.float())
    assert pulled.shape == (100_003, 2)
    each = keys.double() @ torch.linalg.solve(keys.double().T @ keys.double() + 0.7 * torch.eye(3).double(), gradient)
    torch.testing.assert_close(pulled.double(), each, rtol=1e-4, atol=1e-8)
    ridge = -0.7 * (torch.linalg.solve(keys.double().T @ keys.double() + 0.7 * torch.eye(3), gradient) * wanted).sum()
    torch.testing.assert_close(normal.pulled_ridge(gradient.float(), values).double(), ridge, rtol=1e-4, atol=0)
    torch.testing.assert_close(normal.spread(slice(0, 2)), normal.spread()[:2])


def test_the_ridge_is_clamped() -> None:
    assert ridge_of(torch.tensor([-50.0, 0.0, 50.0])).tolist() == pytest.approx(
        [torch.exp(torch.tensor(-20.0)).item(), 1.0, torch.exp(torch.tensor(20.0)).item()]
    )
