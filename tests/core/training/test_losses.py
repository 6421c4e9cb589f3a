"""Losses against plain sums in float64."""

from __future__ import annotations

import math

import pytest
import torch

from kedit_core.training.losses import binary_kl, kl, token_nll

SHAPE = (3, 5, 11)


def some(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


MASK = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]])
IDS = torch.randint(11, SHAPE[:2], generator=torch.Generator().manual_seed(9))


def test_the_nll_is_a_mean_over_tokens_not_over_rows() -> None:
    logits, losses = some(0), []
    for row in range(3):
        for column in range(5):
            if MASK[row, column]:
                whole = sum(math.exp(float(each)) for each in logits[row, column])
                losses.append(math.log(whole) - float(logits[row, column, IDS[row, column]]))
    assert float(token_nll(logits, IDS, MASK)) == pytest.approx(sum(losses) / 8, abs=1e-12)
    kept = MASK.bool()
    assert float(token_nll(logits[kept], IDS[kept])) == pytest.approx(sum(losses) / 8, abs=1e-12)


def test_the_divergence_is_the_sums() -> None:
    base, edited, found = some(0), some(1), []
    for row in range(3):
        for column in range(5):
            if MASK[row, column]:
                p, q = (each[row, column].exp() / each[row, column].exp().sum() for each in (base, edited))
                found.append(sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True)))
    assert float(kl(base, edited, MASK)) == pytest.approx(sum(found) / 8, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_3_a_base_does_not_diverge_from_itself(dtype: torch.dtype) -> None:
    """Acceptance check 3: exactly 0; and losses of half precision are in float32."""
    logits = some(0, dtype)
    assert float(kl(logits, logits.clone(), MASK)) == 0.0
    assert kl(logits, some(1, dtype)).dtype == torch.float32 and token_nll(logits, IDS).dtype == torch.float32
    assert float(kl(some(0, dtype), some(1, dtype), MASK)) == pytest.approx(
        float(kl(some(0, dtype).double(), some(1, dtype).double(), MASK)), rel=1e-5
    )


def test_3_what_the_mask_leaves_out_has_no_influence() -> None:
    """Acceptance check 3: not even what is not a number; neither on values nor on gradients."""
    out = ~MASK.bool()
    results = []
    for filled in (0.0, 1e30, math.nan, math.inf):
        base, edited = some(0), some(1)
        base[out], edited[out] = filled, filled
        edited.requires_grad_()
        loss = kl(base, edited, MASK) + token_nll(edited, IDS, MASK)
        (gradient,) = torch.autograd.grad(loss, edited)
        assert torch.equal(gradient[out], torch.zeros_like(gradient[out]))
        results.append((float(loss.detach()), gradient[~out]))
    assert all(loss == results[0][0] and torch.equal(grad, results[0][1]) for loss, grad in results)


def test_the_base_takes_no_gradient() -> None:
    base, edited = some(0).requires_grad_(), some(1).requires_grad_()
    found = torch.autograd.grad(kl(base, edited), [base, edited], allow_unused=True)
    assert found[0] is None and found[1] is not None


def test_binary_heads() -> None:
    base, edited = some(0)[0, :, 0], some(1)[0, :, 0]
    p, q = torch.sigmoid(base), torch.sigmoid(edited)
    plain = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert float(binary_kl(base, edited)) == pytest.approx(float(plain), abs=1e-12)
    assert float(binary_kl(base, base)) == 0.0
