"""Merging shards, against the formulas written out entry by entry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kedit_methods_memory.wise.memories import Memory, packed_bits, unpacked_bits
from kedit_methods_memory.wise.merging import MergeRule, largest, merged, slerp, thinned


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def shards(count: int = 3) -> list[Tensor]:
    generator = draw()
    return [
        torch.randn(6, 5, generator=generator) * (torch.rand(6, 5, generator=generator) < 0.6) for _ in range(count)
    ]


def rule(algorithm: str, density: float = 0.3) -> MergeRule:
    return MergeRule(algorithm, density, 1.0)  # type: ignore[arg-type]


def plain_largest(delta: Tensor, density: float) -> Tensor:
    flat = delta.reshape(-1).tolist()
    kept = sorted(range(len(flat)), key=lambda i: (-abs(flat[i]), i))[: int(density * len(flat))]
    return torch.tensor([value if i in kept else 0.0 for i, value in enumerate(flat)]).view_as(delta)


def plain_elected(deltas: list[Tensor], weights: list[float], normalise: bool) -> Tensor:
    out = torch.zeros_like(deltas[0])
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            values = [weight * float(delta[i, j]) for weight, delta in zip(weights, deltas, strict=True)]
            up = sum(values) >= 0
            agree = [k for k, value in enumerate(values) if (value > 0 if up else value < 0)]
            total, share = sum(values[k] for k in agree), sum(weights[k] for k in agree)
            out[i, j] = total / (share or 1.0) if normalise else total
    return out


def test_ties_on_disjoint_supports_is_the_sum() -> None:
    """Acceptance check 5, with one entry in which both moved."""
    one, other = torch.tensor([[1.0, 2, 0, 0, 0.5, 0]]), torch.tensor([[0.0, 0, 3, 0, -0.7, 0]])
    found = merged([one, other], [0.5, 0.5], rule("ties", 1.0), draw())
    torch.testing.assert_close(found, torch.tensor([[1.0, 2, 3, 0, -0.7, 0]]))


@pytest.mark.parametrize("weights", [[1 / 3] * 3, [0.2, 0.2, 0.6]])
def test_each_algorithm_is_its_formula(weights: list[float]) -> None:
    deltas = shards()
    trimmed = [plain_largest(delta, 0.3) for delta in deltas]
    wanted = {
        "ties": plain_elected(trimmed, weights, True),
        "sign": plain_elected(deltas, weights, True),
        "magnitude": sum(w * d for w, d in zip(weights, trimmed, strict=True)),
        "linear": sum(w * d for w, d in zip(weights, deltas, strict=True)),
    }
    for algorithm, expected in wanted.items():
        torch.testing.assert_close(merged(deltas, weights, rule(algorithm), draw()), expected, msg=algorithm)


def test_dare_keeps_entries_at_random_and_rescales_them() -> None:
    deltas, generator = shards(2), draw()
    kept = [delta * (torch.rand(6, 5, generator=generator) < 0.3) / 0.3 for delta in deltas]
    found = merged(deltas, [0.5, 0.5], rule("dare_ties"), draw())
    torch.testing.assert_close(found, plain_elected(kept, [0.5, 0.5], False))
    many = thinned(torch.ones(400, 400), 0.25, draw())
    assert float(many.mean()) == pytest.approx(1.0, abs=0.02) and set(many.unique().tolist()) == {0.0, 4.0}


def test_the_largest_are_the_first_of_equals() -> None:
    values = torch.tensor([[2.0, -2.0, 1.0], [2.0, 0.0, -3.0]])
    assert largest(values, 0.5).tolist() == [[2.0, -2.0, 0.0], [0.0, 0.0, -3.0]]
    assert largest(values, 0.9) is values  # no more than these are there
    assert not bool(largest(values, 0.1).any())


def test_slerp_goes_along_the_sphere() -> None:
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    found = slerp(one, other, 1 / 3)
    torch.testing.assert_close(found, torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]]))
    torch.testing.assert_close(slerp(one, 2 * one, 0.25), 1.25 * one)
    torch.testing.assert_close(slerp(0 * one, other, 0.5), 0.5 * other)
    three = merged([one, other, other], [1.0, 1.0, 1.0], rule("slerp"), draw())
    torch.testing.assert_close(three, slerp(slerp(one, other, 0.5), other, 1 / 3))


@pytest.mark.parametrize("shape", [(3, 5), (4, 8), (1, 1)])
def test_supports_are_packed_bits(shape: tuple[int, int]) -> None:
    mask = torch.rand(shape, generator=draw()) < 0.5
    packed = packed_bits(mask)
    assert packed.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpacked_bits(packed, shape), mask)
    delta = torch.randn(shape, generator=draw()) * mask
    memory = Memory.of(delta, 1.5, 2)
    assert memory.values.numel() == int((delta != 0).sum()) and torch.equal(memory.delta(), delta)
