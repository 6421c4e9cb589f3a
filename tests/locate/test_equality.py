"""EMMET's update: acceptance checks 5 and 6 of MEMIT, and facts that collide."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from locate_tools import a_statistic
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_methods_locate.equality import CollidingFactsError, colliding, equality_update
from kedit_methods_locate.factors import Factors
from kedit_methods_locate.ridge import Preserved, ridge_update
from kedit_methods_locate.stats import Identity
from kedit_methods_locate.update import direction, rank_one

WIDTH, OUT = 40, 12
ALPHA = 300.0


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-8) -> None:
    assert float((found - wanted).norm()) <= tolerance * float(wanted.norm())


def preserved(alpha: float = ALPHA) -> Preserved:
    return Preserved.of(a_statistic(0, WIDTH).factorised(), alpha)


def plain(keys: Tensor, alpha: float, mu: float, epsilon: float) -> Tensor:
    """The authors' code: explicit inverses."""
    inverse = torch.linalg.inv(alpha * a_statistic(0, WIDTH).matrix + mu * torch.eye(WIDTH, dtype=torch.float64))
    facts = keys.T @ inverse @ keys + epsilon * torch.eye(keys.shape[1], dtype=torch.float64)
    return (torch.linalg.inv(facts) @ keys.T @ inverse).T


# ------------------------------------------------------------------ 6
@given(seed=st.integers(0, 1000), count=st.integers(2, 30), alpha=st.floats(1, 1e5), epsilon=st.floats(0.01, 1))
def test_it_is_memit_with_lambda_alpha_epsilon(seed: int, count: int, alpha: float, epsilon: float) -> None:
    keys = normal(WIDTH, count, seed=seed)
    found = equality_update(preserved(alpha), keys, epsilon)
    assert found.accurate
    close(found.right, ridge_update(preserved(alpha * epsilon), keys).right, 1e-7)


@pytest.mark.parametrize("mu", [0.0, 3.0])
@pytest.mark.parametrize("count", [2, 7])
def test_the_closed_form(mu: float, count: int) -> None:
    """With mu the statistic has another factor."""
    statistic = a_statistic(0, WIDTH)
    keys = normal(WIDTH, count)
    factor = statistic.factorised(statistic.share(mu / ALPHA))
    found = equality_update(Preserved.of(factor, ALPHA), keys, 0.1)
    close(found.right, plain(keys, ALPHA, mu, 0.1))


def test_without_a_statistic() -> None:
    keys = normal(WIDTH, 3)
    found = equality_update(Preserved.of(Identity(WIDTH), 2.0), keys, 0.0)
    close(found.right, torch.linalg.pinv(keys).T)


# ------------------------------------------------------------------ 5
def test_one_fact_is_r_rome() -> None:
    """The same key and residual: ROME's direction and divisor."""
    key, residual = normal(WIDTH, 1), normal(OUT, 1, seed=1)
    rome = rank_one(residual[:, 0], key[:, 0], direction(key[:, 0], a_statistic(0, WIDTH).factorised().solve))
    wanted = torch.outer(rome.left, rome.right)
    for found in (equality_update(preserved(), key), equality_update(preserved(), key, exact=True)):
        close(Factors.of(residual, found.right).delta(), wanted, 1e-10)
    assert plain(key, ALPHA, 0, 0.1).shape == (WIDTH, 1)
    close(equality_update(preserved(), key, 0.1, ridge_for_one=True).right, plain(key, ALPHA, 0, 0.1))
    both = equality_update(preserved(), key, 0.1, ridge_for_one=True, exact=True)
    close(Factors.of(residual, both.right).delta(), wanted)


@pytest.mark.parametrize("count", [2, 8, WIDTH])
def test_exact_gives_what_is_asked_for(count: int) -> None:
    keys, left = normal(WIDTH, count), normal(OUT, count, seed=1)
    close(left @ equality_update(preserved(), keys, 0.0).right.T @ keys, left, 1e-6)
    if count < WIDTH:  # as many facts as components: the jitter can be seen
        close(left @ equality_update(preserved(), keys, exact=True).right.T @ keys, left, 1e-6)
    # alone, alpha has no effect then
    close(equality_update(preserved(7.0), keys, 0.0).right, equality_update(preserved(), keys, 0.0).right)


def test_earlier_edits_are_kept() -> None:
    first, second, left = normal(WIDTH, 4), normal(WIDTH, 4, seed=1), normal(OUT, 4, seed=2)
    free = left @ equality_update(preserved(), second, exact=True).right.T
    held = left @ equality_update(preserved().with_(first, weight=1e6), second, exact=True).right.T
    assert float((held @ first).norm()) < 1e-2 * float((free @ first).norm())
    close(held @ second, left, 1e-6)


# ------------------------------------------------------------------ collisions
@pytest.mark.parametrize("exact", [True, False])
def test_equal_keys_are_named(exact: bool) -> None:
    keys = normal(WIDTH, 8)
    keys[:, 5] = keys[:, 1] * (1 + 1e-7)
    keys[:, 7] = keys[:, 4] = keys[:, 0]
    with pytest.raises(CollidingFactsError, match=r"facts 0, 4, 7; 1, 5 \(counted") as caught:
        equality_update(preserved(), keys, 0.0, exact=exact)
    assert caught.value.groups == ((0, 4, 7), (1, 5))
    assert isinstance(caught.value, MethodError)
    found = equality_update(preserved(), keys, 0.1)
    assert bool(torch.isfinite(found.right).all())
    assert found.accurate


def test_keys_that_depend_on_one_another_are_named() -> None:
    keys = normal(WIDTH, 5)
    keys[:, 3] = keys[:, 0] - 2 * keys[:, 2]
    with pytest.raises(CollidingFactsError) as caught:
        equality_update(preserved(), keys, exact=True)
    assert caught.value.groups == ((0, 2, 3),)


def test_more_facts_than_components_cannot_be_exact() -> None:
    with pytest.raises(CollidingFactsError) as caught:
        equality_update(preserved(), normal(WIDTH, WIDTH + 1), 0.0)
    (group,) = caught.value.groups
    assert len(group) > 0.9 * WIDTH, "a fact with next to no part in it may be missing"


@given(seed=st.integers(0, 1000), scale=st.floats(1e-6, 1e6))
def test_keys_in_general_position_do_not_collide(seed: int, scale: float) -> None:
    """Whatever their size; near ones neither, as long as a float32 model could tell them apart."""
    keys = normal(WIDTH, 6, seed=seed)
    keys[:, 1] = keys[:, 0] + 1e-3 * keys[:, 1]
    keys[:, 2] *= scale
    assert colliding(keys.T @ keys) == ()


def test_a_zero_key_is_named() -> None:
    keys = normal(WIDTH, 3)
    keys[:, 1] = 0
    with pytest.raises(MethodError, match="fact 1"):
        equality_update(preserved(), keys)


def test_a_bad_factor_is_noticed() -> None:
    from attrs import evolve

    factor = a_statistic(0, WIDTH).factorised()
    keys = normal(WIDTH, 3)
    found = equality_update(Preserved.of(evolve(factor, lower=factor.lower * 1.001), ALPHA), keys, 0.1)
    assert found.form == "direct"
    close(found.right, plain(keys, ALPHA, 0, 0.1))
